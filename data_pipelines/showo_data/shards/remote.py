"""Access to shards that are not local files: their size, byte ranges, and whole copies.

http(s) goes through :mod:`showo_data.shards.web`, ``pipe:`` through a shell, and everything else through
fsspec.
"""

import math
import os
import selectors
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any, BinaryIO, TypeVar

from fsspec.core import url_to_fs

from showo_data.shards.names import PIPE, scheme
from showo_data.shards.storage import UNKNOWN, RemoteState, Storage, UnreadableShardError
from showo_data.shards.web import web_read, web_state

# What clients of object stores call the mark of a version.
_MARKS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")
_PART = 8 << 20  # bytes of one request of a whole copy
Result = TypeVar("Result")


def remote_state(shard: str, storage: Storage) -> RemoteState:
    """Return size and ETag of a remote shard; raises as :func:`remote_read`."""
    kind = scheme(shard)
    if kind == PIPE:
        return UNKNOWN
    if kind in ("http", "https"):
        return web_state(shard, storage)

    def state(files: Any, path: str) -> RemoteState:
        info = files.info(path)
        marks = (str(info[name]) for name in _MARKS if info.get(name))
        return RemoteState(int(info["size"]), next(marks, ""))

    return _with_fsspec(shard, state, storage)


def remote_read(
    shard: str, first: int, size: int, storage: Storage, known: RemoteState = UNKNOWN
) -> bytes:
    """Read ``size`` bytes of a remote shard from byte ``first`` on; fewer only where it ends.

    ``storage.retries`` applies to http(s); the clients of object stores have their own rules.

    Args:
        known: state of the file that is meant; compared for http(s), whose answers contain it.

    Raises:
        UnreadableShardError: an error remains after all retries or at the end of the time; "changed-shard":
            it is another file.
    """
    assert scheme(shard) != PIPE, "the output of a command is read from its cached copy only"
    if scheme(shard) in ("http", "https"):
        return web_read(shard, first, size, storage, known)

    def read(files: Any, path: str) -> bytes:
        return bytes(files.cat_file(path, start=first, end=first + size))

    data = _with_fsspec(shard, read, storage)
    if len(data) > size:
        raise UnreadableShardError("unreadable-shard", f"{shard}: its client ignores byte ranges")
    return data


def remote_copy(shard: str, stream: BinaryIO, storage: Storage, most: float = math.inf) -> None:
    """Write a whole remote shard to ``stream``.

    Raises:
        UnreadableShardError: as :func:`remote_read`, or it has more than ``most`` bytes; ``stream`` then
            holds a part.
    """
    if scheme(shard) == PIPE:
        _run(shard.partition(":")[2], stream, storage.timed(), most)
        return
    storage = storage.timed()
    state = remote_state(shard, storage)
    size = state.size or 0
    if size > most:
        raise UnreadableShardError(
            "unreadable-shard", f"{shard}: of {size} bytes, which is too large"
        )
    for first in range(0, size, _PART):
        wanted = min(_PART, size - first)
        part = remote_read(shard, first, wanted, storage, state)
        if len(part) < wanted:
            raise UnreadableShardError("truncated", f"{shard}: shrank while it was copied")
        stream.write(part)
        storage = storage.started()


def _run(command: str, stream: BinaryIO, storage: Storage, most: float) -> None:
    """Write what a command prints; it is killed when a part does not come in time, or too much comes."""
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # its own group, so that the whole pipeline can be killed
    )
    assert process.stdout is not None
    try:
        size = 0
        while part := _printed(process.stdout, storage, command):
            stream.write(part)
            size += len(part)
            if size > most:
                raise UnreadableShardError("cache-full", f"pipe:{command}: prints too much")
            if size // _PART > (size - len(part)) // _PART:
                storage = storage.started()
        code = process.wait(max(storage.left_s, 0))
    except subprocess.TimeoutExpired as error:
        raise UnreadableShardError("shard-timeout", f"pipe:{command}: does not end") from error
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
    if code:
        raise UnreadableShardError("pipe-failed", f"pipe:{command}: ended with exit code {code}")


def _printed(stdout: Any, storage: Storage, command: str) -> bytes:
    """Return the next bytes that a command prints; none at their end."""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if not selector.select(max(storage.left_s, 0)):
            raise UnreadableShardError(
                "shard-timeout", f"pipe:{command}: no output in data.timeout_s"
            )
    return os.read(stdout.fileno(), 1 << 20)


def _with_fsspec(shard: str, act: Callable[[Any, str], Result], storage: Storage) -> Result:
    try:
        return _in_time(lambda: act(*url_to_fs(shard)), storage.timed().left_s)
    except FileNotFoundError as error:
        raise UnreadableShardError("missing-shard", f"{shard}: does not exist") from error
    except TimeoutError as error:
        raise UnreadableShardError(
            "shard-timeout", f"{shard}: no answer in data.timeout_s"
        ) from error
    except Exception as error:  # every store has its own exceptions
        raise UnreadableShardError("unreadable-shard", f"{shard}: {error}") from error


def _in_time(act: Callable[[], Result], seconds: float) -> Result:
    """Return what ``act`` returns; at the end of the time it is left behind, since no store ends its own.

    Raises:
        TimeoutError: the time is over.
    """
    future = Future[Result]()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(max(seconds, 0))
