"""Process groups of the single pass, and the tiny world of training, for stages and memory."""

from tests.single_pass.conftest import group
from tests.training.conftest import tiny_world

__all__ = ["group", "tiny_world"]
