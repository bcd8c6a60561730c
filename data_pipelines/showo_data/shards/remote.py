"""Shards that are not files of this machine: their size, byte ranges of them, whole copies."""

import subprocess
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from fsspec.core import url_to_fs

from showo_data.shards.http import http_read, http_size
from showo_data.shards.names import PIPE, scheme
from showo_data.shards.storage import Storage, UnreadableShardError

_CHUNK = 8 << 20  # bytes of one request of a whole copy
Result = TypeVar("Result")


def remote_size(shard: str, storage: Storage) -> int | None:
    """Bytes of a remote shard; None for a command, which tells only at its end."""
    kind = scheme(shard)
    if kind == PIPE:
        return None
    if kind in ("http", "https"):
        return http_size(shard, storage)
    return int(_with_fsspec(shard, lambda files, path: files.size(path)))


def remote_read(shard: str, first: int, size: int, storage: Storage) -> bytes:
    """``size`` bytes of a remote shard from ``first`` on; fewer only where it ends.

    The retries are those of web servers; the clients of object stores retry by rules of their own.

    Raises:
        UnreadableShardError: an error that lasts.
    """
    assert scheme(shard) != PIPE, "the output of a command is only read from its copy"
    if scheme(shard) in ("http", "https"):
        return http_read(shard, first, size, storage)

    def read(files: Any, path: str) -> bytes:
        return bytes(files.cat_file(path, start=first, end=first + size))

    return _with_fsspec(shard, read)


def remote_copy(shard: str, stream: BinaryIO, storage: Storage) -> None:
    """Write a whole remote shard to ``stream``.

    Raises:
        UnreadableShardError: an error that lasts; ``stream`` then holds a part.
    """
    size = remote_size(shard, storage)
    if size is None:
        _run(shard.partition(":")[2], stream)
        return
    for first in range(0, size, _CHUNK):
        wanted = min(_CHUNK, size - first)
        part = remote_read(shard, first, wanted, storage)
        if len(part) < wanted:
            raise UnreadableShardError("truncated", f"{shard}: shrank while it was copied")
        stream.write(part)


def _run(command: str, stream: BinaryIO) -> None:
    done = subprocess.run(command, shell=True, stdout=stream, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UnreadableShardError(
            "pipe-failed", f"pipe:{command}: ended with exit code {done.returncode}"
        )


def _with_fsspec(shard: str, act: Callable[[Any, str], Result]) -> Result:
    try:
        files, path = url_to_fs(shard)
        return act(files, path)
    except FileNotFoundError as error:
        raise UnreadableShardError("missing-shard", f"{shard}: does not exist") from error
    except Exception as error:  # every kind of store has exceptions of its own
        raise UnreadableShardError("unreadable-shard", f"{shard}: {error}") from error
