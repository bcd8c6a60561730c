"""One thread, because the models are tiny; the process groups of the single pass's tests."""

import pytest
import torch

from tests.single_pass.conftest import group

__all__ = ["group"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
