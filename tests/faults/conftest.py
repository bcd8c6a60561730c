"""The very small world of the training tests."""

from tests.training.conftest import tiny_world

__all__ = ["tiny_world"]
