"""Use a trained model: generate and edit images, ask questions about them.

    from showo_dist.generation import Pipeline
    pipeline = Pipeline.load("runs/my-run/checkpoint-050000")
    pipeline.generate(["a red circle left of a blue square"])[0]

``pipeline`` has the operations and ``networks`` loads a model; ``conversation`` makes token sequences,
``sampling`` and ``answer`` sample images and texts over the ``cache`` of keys and values, and ``edits``
prepares images and masks. ``commands``, ``understand``, ``request`` and ``output`` are the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showo_dist.generation.conversation import Edit, Turn, assistant, user
    from showo_dist.generation.edits import read_image
    from showo_dist.generation.pipeline import Conversation, Pipeline
    from showo_dist.generation.sampling import SamplingOptions

# Imported at first use: training needs the sampler alone.
_MODULES = {
    "Conversation": "pipeline",
    "Edit": "conversation",
    "Pipeline": "pipeline",
    "SamplingOptions": "sampling",
    "Turn": "conversation",
    "assistant": "conversation",
    "read_image": "edits",
    "user": "conversation",
}

__all__ = [
    "Conversation",
    "Edit",
    "Pipeline",
    "SamplingOptions",
    "Turn",
    "assistant",
    "read_image",
    "user",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
