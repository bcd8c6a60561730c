"""Access to shards that are not local files: their size, byte ranges, and whole copies.

http(s) goes through urllib3 with retries, ``pipe:`` through a shell, and everything else through fsspec.
"""

import os
import re
import subprocess
from collections.abc import Callable
from functools import lru_cache
from http.client import IncompleteRead
from typing import Any, BinaryIO, NamedTuple, TypeVar

from fsspec.core import url_to_fs
from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError, MaxRetryError

from showo_data.shards.names import PIPE, scheme
from showo_data.shards.storage import Storage, UnreadableShardError

# Busy or failing servers, and 403, which some servers send when there are too many requests.
_TRY_AGAIN = (403, 408, 425, 429, 500, 502, 503, 504)
_TIMEOUT = Timeout(connect=10, read=60)  # seconds, per attempt
_CONTENT_RANGE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")
# What clients of object stores call the mark of a version.
_MARKS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")
_CHUNK = 8 << 20  # bytes of one request of a whole copy
Result = TypeVar("Result")


class RemoteState(NamedTuple):
    """Known by a server about a file, which changes when the file does.

    Attributes:
        size: in bytes; None: unknown, as of the output of a ``pipe:`` command.
        etag: ETag or another mark of this version; empty if the server gives none.
    """

    size: int | None
    etag: str

    def differs(self, now: "RemoteState") -> bool:
        """Whether the file is another one now; what one of the two does not know is not compared."""
        return self.size not in (None, now.size) or (
            bool(self.etag and now.etag) and self.etag != now.etag
        )


UNKNOWN = RemoteState(None, "")


def remote_state(shard: str, storage: Storage) -> RemoteState:
    """Return size and ETag of a remote shard."""
    kind = scheme(shard)
    if kind == PIPE:
        return UNKNOWN
    if kind in ("http", "https"):
        # A GET of one byte, since signed URLs do not allow HEAD.
        return _state(_get(shard, 0, 1, storage), shard)

    def state(files: Any, path: str) -> RemoteState:
        info = files.info(path)
        marks = (str(info[name]) for name in _MARKS if info.get(name))
        return RemoteState(int(info["size"]), next(marks, ""))

    return _with_fsspec(shard, state)


def remote_read(
    shard: str, first: int, size: int, storage: Storage, known: RemoteState = UNKNOWN
) -> bytes:
    """Read ``size`` bytes of a remote shard from byte ``first`` on; fewer only where it ends.

    ``storage.retries`` applies to http(s); the clients of object stores have their own rules.

    Args:
        known: state of the file that is meant; compared for http(s), whose answers contain it.

    Raises:
        UnreadableShardError: an error remains after all retries; "changed-shard": it is another file.
    """
    assert scheme(shard) != PIPE, "the output of a command is read from its cached copy only"
    if scheme(shard) in ("http", "https"):
        return _http_read(shard, first, size, storage, known)

    def read(files: Any, path: str) -> bytes:
        return bytes(files.cat_file(path, start=first, end=first + size))

    return _with_fsspec(shard, read)


def remote_copy(shard: str, stream: BinaryIO, storage: Storage) -> None:
    """Write a whole remote shard to ``stream``.

    Raises:
        UnreadableShardError: an error remains after all retries; ``stream`` then holds a part.
    """
    state = remote_state(shard, storage)
    if state.size is None:
        _run(shard.partition(":")[2], stream)
        return
    for first in range(0, state.size, _CHUNK):
        wanted = min(_CHUNK, state.size - first)
        part = remote_read(shard, first, wanted, storage, state)
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
    except Exception as error:  # every store has its own exceptions
        raise UnreadableShardError("unreadable-shard", f"{shard}: {error}") from error


def _http_read(url: str, first: int, size: int, storage: Storage, known: RemoteState) -> bytes:
    """Read ``size`` bytes from byte ``first`` on; fewer only where the file ends.

    Raises:
        UnreadableShardError: an error remains after all retries, the server does not support ranges, or the
            file has changed.
    """
    parts: list[bytes] = []
    while size > 0:
        response = _get(url, first, size, storage)
        now = _state(response, url)
        if known.differs(now):
            raise UnreadableShardError("changed-shard", f"{url}: has changed on the server")
        if response.status == 416:  # the range begins after the end of the file
            break
        data = response.data
        parts.append(data)
        first, size = first + len(data), size - len(data)
        if first >= (now.size or 0):
            break
        if not data:
            raise UnreadableShardError("http-short-body", f"{url}: an answer without a body")
    return b"".join(parts)


def _get(url: str, first: int, size: int, storage: Storage) -> BaseHTTPResponse:
    policy = Retry(
        total=None,
        connect=storage.retries,
        read=storage.retries,
        status=storage.retries,
        other=storage.retries,
        redirect=5,
        status_forcelist=_TRY_AGAIN,
        backoff_factor=storage.pause_s / 2,
        backoff_max=30,
        backoff_jitter=storage.pause_s,
        raise_on_status=False,
    )
    wanted = {"Range": f"bytes={first}-{first + size - 1}", "Accept-Encoding": "identity"}
    try:
        return _pool(os.getpid()).request("GET", url, headers=wanted, retries=policy)
    except HTTPError as error:
        raise UnreadableShardError(_reason(error), f"{url}: {error}") from error


def _reason(error: HTTPError) -> str:
    """Return the reason for a lasting error; urllib3 wraps a body that was cut short in its retry error."""
    inner: BaseException | None = error.reason if isinstance(error, MaxRetryError) else error
    short = any(isinstance(argument, IncompleteRead) for argument in getattr(inner, "args", ()))
    return "http-short-body" if short else "http-unreachable"


def _state(response: BaseHTTPResponse, url: str) -> RemoteState:
    """Return size and ETag of the whole file from the answer to a range request."""
    if response.status == 200:
        raise UnreadableShardError(
            "http-no-ranges", f"{url}: the server sends whole files only, not the ranges asked for"
        )
    if response.status not in (206, 416):
        raise UnreadableShardError(f"http-{response.status}", f"{url}: HTTP {response.status}")
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise UnreadableShardError("http-no-ranges", f"{url}: an answer without Content-Range")
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
    return RemoteState(int(match[1]), mark)


@lru_cache(maxsize=1)
def _pool(process: int) -> PoolManager:
    """Return the connections of this process; a forked process must not use those of its parent."""
    return PoolManager(maxsize=4, timeout=_TIMEOUT)
