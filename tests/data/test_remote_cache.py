"""The cache of whole shards: bounded, filled once by whichever process comes first, never seen half full."""

import errno
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from showo_data import FlowSpec, Source
from showo_data.shards import Storage, load_index, write_shard
from showo_data.shards.cache import ShardCache
from tests.data.server import serving

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


def test_a_shard_that_shrinks_is_not_filled_up_with_zeros(tmp_path: Path) -> None:
    descriptor = _open(ShardCache(tmp_path, limit=100), "a", 50, size_known=80)
    assert descriptor is not None
    assert os.read(descriptor, 1000) == b"x" * 50
    os.close(descriptor)


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


def _served(tmp_path: Path, texts: tuple[str, ...] = ("one", "two", "three")) -> Path:
    folder = tmp_path / "served"
    folder.mkdir(exist_ok=True)
    samples = [{"__key__": f"k{i}", "txt": text} for i, text in enumerate(texts)]
    write_shard(folder / "a.tar", samples)
    return folder


def _epoch(url: str, storage: Storage) -> list[str | None]:
    spec = FlowSpec(flow="f", kind="text", urls=(url,), batch=1, streams=1, window=1)
    source = Source(replace(spec, storage=storage))
    return [getattr(source[p], "text", None) for p in range(len(source))]


@pytest.mark.parametrize("damage", ["zeros", "part", "short", "bit"])
def test_a_damaged_copy_is_made_again(tmp_path: Path, damage: str) -> None:
    storage = Storage(cache_dir=str(tmp_path / "cache"), cache_gb=1.0, retries=0)
    with serving(_served(tmp_path)) as server:
        url = f"{server.url}/a.tar"
        assert _epoch(url, storage) == ["one", "two", "three"]
        (copy,) = (tmp_path / "cache" / "shards").glob("*.tar")
        data = bytearray(copy.read_bytes())
        changed = {
            "zeros": bytes(len(data)),
            "part": data[:512] + bytes(512) + data[1024:],
            "short": data[:700],
            "bit": data[:513] + bytes([data[513] ^ 1]) + data[514:],
        }
        copy.write_bytes(changed[damage])
        assert _epoch(url, storage) == ["one", "two", "three"]
        assert copy.read_bytes() == data


def test_a_copy_that_was_compared_is_not_fetched_again(tmp_path: Path) -> None:
    storage = Storage(cache_dir=str(tmp_path / "cache"), cache_gb=1.0, retries=0)
    with serving(_served(tmp_path)) as server:
        url = f"{server.url}/a.tar"
        _epoch(url, storage)
        server.requests.clear()
        assert _epoch(url, storage) == ["one", "two", "three"]
        assert not server.requests


def test_a_copy_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(any(tmp_path.glob("*.tar"))))
    os.close(_open(ShardCache(tmp_path, limit=100), "a", 100) or 0)
    assert seen == [False]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["_reserve", "_lock", "_fill"])
def test_a_cache_that_cannot_be_written_falls_back_to_ranges(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    call: str,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    storage = Storage(cache_dir=str(tmp_path / "cache"), cache_gb=1.0, retries=0)
    monkeypatch.setattr(ShardCache, call, fails)
    with serving(_served(tmp_path)) as server:
        for _ in range(3):
            assert _epoch(f"{server.url}/a.tar", storage) == ["one", "two", "three"]
    lines = [r.message for r in caplog.records if "cannot be used" in r.message]
    assert len(lines) == 1 and str(tmp_path / "cache") in lines[0] and "by ranges" in lines[0]


def test_an_index_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    storage = Storage(cache_dir=str(tmp_path / "cache"), retries=0)
    with (
        serving(_served(tmp_path)) as server,
        pytest.raises(OSError, match=r"a\.tar: its index .*data\.cache_dir"),
    ):
        load_index(f"{server.url}/a.tar", storage)
