"""Using a trained model: pictures, edits, answers.

from showo_dist.generation import Pipeline
pipeline = Pipeline.load("runs/my-run/checkpoint-050000")
pipeline.paint_texts(["a red circle left of a blue square"])[0]
"""

from showo_dist.generation.conversation import Turn, assistant, user
from showo_dist.generation.edits import read_picture
from showo_dist.generation.pipeline import Conversation, Pipeline
from showo_dist.generation.sampling import PaintOptions

__all__ = [
    "Conversation",
    "PaintOptions",
    "Pipeline",
    "Turn",
    "assistant",
    "read_picture",
    "user",
]
