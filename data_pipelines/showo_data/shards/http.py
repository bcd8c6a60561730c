"""Byte ranges of files on web servers, through urllib3: pooled connections, retries, growing pauses."""

import os
import re
from functools import lru_cache
from http.client import IncompleteRead

from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError, MaxRetryError

from showo_data.shards.storage import Storage, UnreadableShardError

# Busy or failing servers, and 403, with which some of them answer whoever asks too often.
_TRY_AGAIN = (403, 408, 425, 429, 500, 502, 503, 504)
_TIMEOUT = Timeout(connect=10, read=60)  # seconds, of every attempt
_CONTENT_RANGE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")


def http_size(url: str, storage: Storage) -> int:
    """Bytes of the file at ``url``; asked for with GET, since signed URLs allow nothing else."""
    return _total(_get(url, 0, 1, storage), url)


def http_read(url: str, first: int, size: int, storage: Storage) -> bytes:
    """``size`` bytes from byte ``first`` on; fewer only where the file ends.

    Raises:
        UnreadableShardError: an error that lasts, or a server that does not answer range requests.
    """
    parts: list[bytes] = []
    while size > 0:
        response = _get(url, first, size, storage)
        if response.status == 416:  # the range begins behind the end
            break
        end, data = _total(response, url), response.data
        parts.append(data)
        first, size = first + len(data), size - len(data)
        if first >= end:
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
    """A body that was cut short comes wrapped in the errors of those who tried again."""
    inner: BaseException | None = error.reason if isinstance(error, MaxRetryError) else error
    short = any(isinstance(argument, IncompleteRead) for argument in getattr(inner, "args", ()))
    return "http-short-body" if short else "http-unreachable"


def _total(response: BaseHTTPResponse, url: str) -> int:
    """The size of the whole file, from the answer to a request for a part."""
    if response.status == 200:
        raise UnreadableShardError(
            "http-no-ranges", f"{url}: the server sends whole files only, not the ranges asked for"
        )
    if response.status not in (206, 416):
        raise UnreadableShardError(f"http-{response.status}", f"{url}: HTTP {response.status}")
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise UnreadableShardError("http-no-ranges", f"{url}: an answer without Content-Range")
    return int(match[1])


@lru_cache(maxsize=1)
def _pool(process: int) -> PoolManager:
    """Connections of one process: a fork must not talk on its parent's."""
    return PoolManager(maxsize=4, timeout=_TIMEOUT)
