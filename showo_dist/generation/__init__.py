"""Using a trained model: images, edits, answers.

from showo_dist.generation import Pipeline
pipeline = Pipeline.load("runs/my-run/checkpoint-050000")
pipeline.generate(["a red circle left of a blue square"])[0]
"""

from showo_dist.generation.conversation import Turn, assistant, user
from showo_dist.generation.edits import read_image
from showo_dist.generation.pipeline import Conversation, Pipeline
from showo_dist.generation.sampling import SamplingOptions

__all__ = [
    "Conversation",
    "Pipeline",
    "SamplingOptions",
    "Turn",
    "assistant",
    "read_image",
    "user",
]
