"""The cache of whole shards: bounded, filled once by whichever process comes first, never seen half full."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from showo_data.shards.cache import ShardCache

pytestmark = pytest.mark.usefixtures("time_limit")


def _fill(size: int, pause_s: float = 0.0, log: Path | None = None) -> object:
    def fill(stream: BinaryIO) -> None:
        if log is not None:
            with log.open("a") as lines:
                lines.write("filled\n")
        for _ in range(size):
            stream.write(b"x")
            time.sleep(pause_s)

    return fill


def _open(
    cache: ShardCache, name: str, size: int, size_known: int | None = -1, **options: object
) -> int | None:
    size_known = size if size_known == -1 else size_known
    return cache.open(name, lambda: size_known, _fill(size, **options))  # type: ignore[arg-type]


def _names(cache: ShardCache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.tar")}


def test_the_least_recently_opened_copy_goes_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=300)
    for name in ("a", "b", "c", "a", "d"):
        descriptor = _open(cache, name, 100)
        assert descriptor is not None
        assert os.read(descriptor, 1000) == b"x" * 100
        os.close(descriptor)
        time.sleep(0.01)  # file systems keep time in ticks
    assert _names(cache) == {"a", "c", "d"}


def test_an_open_copy_stays_readable_when_it_is_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=100)
    first = _open(cache, "a", 100)
    assert first is not None
    os.close(_open(cache, "b", 100) or 0)
    assert _names(cache) == {"b"}
    assert os.pread(first, 200, 0) == b"x" * 100
    os.close(first)


@pytest.mark.parametrize("size_known", [101, None])
def test_what_does_not_fit_is_not_kept(tmp_path: Path, size_known: int | None) -> None:
    cache = ShardCache(tmp_path, limit=100)
    assert _open(cache, "a", 101, size_known) is None
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=100)

    def fill(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError("the network is down")

    with pytest.raises(OSError, match="the network is down"):
        cache.open("a", lambda: 50, fill)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []
    descriptor = _open(cache, "a", 50)
    assert descriptor is not None and os.read(descriptor, 100) == b"x" * 50
    os.close(descriptor)


def _open_in_process(folder: Path, log: Path) -> None:
    descriptor = _open(ShardCache(folder, limit=100), "a", 50, pause_s=0.004, log=log)
    assert descriptor is not None
    assert os.read(descriptor, 100) == b"x" * 50


def test_many_processes_fill_a_copy_once(tmp_path: Path) -> None:
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    folder = tmp_path / "cache"
    processes = [context.Process(target=_open_in_process, args=(folder, log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "filled\n"


def test_a_copy_whose_maker_was_killed_gives_its_room_back(tmp_path: Path) -> None:
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    folder = tmp_path / "cache"
    maker = context.Process(target=_open_in_process, args=(folder, log))
    maker.start()
    while not log.exists():
        time.sleep(0.01)
    assert maker.pid is not None
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()
    assert [path.suffix for path in folder.iterdir() if path.is_file()] == [".partial"]
    descriptor = _open(ShardCache(folder, limit=100), "b", 100)
    assert descriptor is not None
    os.close(descriptor)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["b.tar"]
