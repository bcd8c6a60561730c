"""Small shards of the mini world, and a hard time limit for tests with worker processes."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from showo_data.mini.writing import MiniSettings, write_mini

SMALL = MiniSettings(images=50, texts=23, validation=5, prompts_per_tag=4, shard_size=20, seed=7)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 50 images and 23 texts in shards of 20. Not to be changed."""
    folder = tmp_path_factory.mktemp("mini")
    write_mini(folder, SMALL)
    return folder


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Fails a test that hangs, after 60 seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the test ran longer than 60 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
