"""A trained tiny run, once."""

from pathlib import Path

import pytest

from tests.training.conftest import TinyWorld, tiny_world, train

__all__ = ["checkpoint", "tiny_world"]


@pytest.fixture(scope="session")
def checkpoint(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that two ranks wrote under ZeRO-3."""
    run = tmp_path_factory.mktemp("export") / "run"
    settings = ("training.max_train_steps=2", "distributed.zero_stage=3")
    done = train(tiny_world, run, *settings, ranks=2)
    assert done.code == 0, done.stderr[-3000:]
    return run / "checkpoint-000002"
