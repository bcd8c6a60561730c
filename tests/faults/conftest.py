"""The fixture of the training tests: a very small model, tokenizers and data."""

from tests.training.conftest import tiny_world

__all__ = ["tiny_world"]
