"""The tiny untrained checkpoint of the generation tests, for the examples."""

from tests.generation.conftest import checkpoint, encoders

__all__ = ["checkpoint", "encoders"]
