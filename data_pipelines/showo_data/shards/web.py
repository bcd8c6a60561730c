"""Byte ranges of files on web servers.

An answer is compared with the request before its body is read, and nothing of it is believed that the body
does not keep: a wrong range, a compressed body or one without end is an error and never data. Time and bytes
of an answer are bounded, however slowly they come.
"""

import os
import random
import re
import time
from contextvars import ContextVar
from functools import lru_cache
from http import client
from io import BufferedReader, RawIOBase
from itertools import count
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import (
    BaseHTTPResponse,
    HTTPConnectionPool,
    HTTPSConnectionPool,
    PoolManager,
    ProxyManager,
    Retry,
    Timeout,
    make_headers,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError

from showo_data.shards.storage import UNKNOWN, RemoteState, Storage, UnreadableShardError

# Busy or failing servers, and 403, which some servers send when there are too many requests.
_TRY_AGAIN = (403, 408, 425, 429, 500, 502, 503, 504)
_CONNECT_S = 10.0  # at most, per attempt
_LONGEST_PAUSE_S = 30.0
_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18})")
_OVERHEAD = 256 << 10  # bytes of an answer beside its body: headers, and the marks of chunks


def web_state(url: str, storage: Storage) -> RemoteState:
    """Return size and ETag of a file; raises as :func:`web_read`."""
    # A GET of one byte, since signed URLs do not allow HEAD.
    return _range(url, 0, 1, storage.timed(), UNKNOWN)[0]


def web_read(url: str, first: int, size: int, storage: Storage, known: RemoteState) -> bytes:
    """Read ``size`` bytes from byte ``first`` on; fewer only where the file ends.

    Raises:
        UnreadableShardError: an error remains after all retries or at the end of the time, the server does
            not support ranges, or the file is not the ``known`` one.
    """
    storage, parts = storage.timed(), list[bytes]()
    while size > 0:
        state, data = _range(url, first, size, storage, known)
        parts.append(data)
        first, size = first + len(data), size - len(data)
        if not data or first >= (state.size or 0):
            break
        known = RemoteState(state.size, state.etag or known.etag)  # all parts are of one version
    return b"".join(parts)


class _PassingError(UnreadableShardError):
    """An error that the next attempt may not have; the server may say after how many seconds."""

    after_s: float | None = None


def _range(
    url: str, first: int, size: int, storage: Storage, known: RemoteState
) -> tuple[RemoteState, bytes]:
    """Request a range until it comes; a server may send the beginning of it only."""
    before: _PassingError | None = None
    for attempt in count():
        # Half of the time that is left, so that a connection that hangs leaves time for another one.
        share = 1 if attempt == storage.retries else 2
        try:
            return _attempt(url, first, size, storage.left_s / share, known)
        except _PassingError as error:
            # That the time ended says less than what it was spent on.
            before = error if before is None or error.reason != "shard-timeout" else before
            if attempt == storage.retries or storage.left_s <= 0:
                raise before from None
            pause = storage.pause_s * (2**attempt / 2 if attempt else 0)
            pause = min(pause, _LONGEST_PAUSE_S) + random.random() * storage.pause_s
            wanted = pause if error.after_s is None else error.after_s
            time.sleep(max(0.0, min(wanted, storage.left_s / 2)))
    raise AssertionError("attempts end by an answer or an error")


def _attempt(
    url: str, first: int, size: int, seconds: float, known: RemoteState
) -> tuple[RemoteState, bytes]:
    """Request a range once, behind redirects."""
    end, place = time.monotonic() + seconds, url
    _BOUNDS.set((end, 2 * size + _OVERHEAD))
    headers = {"Range": f"bytes={first}-{first + size - 1}", "Accept-Encoding": "identity"}
    try:
        for _ in range(1 + _REDIRECTS):
            left = end - time.monotonic()
            if left <= 0:
                raise _PassingError("shard-timeout", f"{url}: no answer in data.timeout_s")
            response = _pool(os.getpid(), _proxy(place)).request(
                "GET",
                place,
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=Timeout(connect=min(_CONNECT_S, left), read=left),
            )
            try:
                location = response.get_redirect_location()
                if not location:
                    return _checked(response, url, first, size, known)
            finally:
                response.close()  # of a body that was read, the connection is back in the pool
            place = urljoin(place, location)
    except NewConnectionError as error:  # refused, or no such host: urllib3 calls it a timeout too
        raise _PassingError("http-unreachable", f"{url}: {error}") from error
    except HTTPTimeoutError as error:
        raise _PassingError("shard-timeout", f"{url}: {error}") from error
    except (HTTPError, client.HTTPException, ValueError, OSError) as error:
        if isinstance(error, UnreadableShardError):
            raise
        raise _PassingError("http-unreachable", f"{url}: {error}") from error
    raise UnreadableShardError("http-unreachable", f"{url}: more than {_REDIRECTS} redirects")


def _checked(
    response: BaseHTTPResponse, url: str, first: int, size: int, known: RemoteState
) -> tuple[RemoteState, bytes]:
    """Compare an answer with the request, and read its body."""
    if response.status in _TRY_AGAIN:
        error = _PassingError(f"http-{response.status}", f"{url}: HTTP {response.status}")
        error.after_s = _retry_after(response)
        raise error
    state, length = _promised(response, url, first, size)
    if known.differs(state):
        raise UnreadableShardError("changed-shard", f"{url}: has changed on the server")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _PassingError("http-compressed", f"{url}: a compressed answer, which was not wanted")
    if not length:
        return state, b""
    try:
        data = response.read(length + 1)  # one more, to see whether the body ends
    except (HTTPError, client.HTTPException) as error:
        if not any(isinstance(argument, client.IncompleteRead) for argument in error.args):
            raise
        data = b""
    if len(data) < length:
        raise _PassingError("http-short-body", f"{url}: the body of an answer ends early")
    if len(data) > length:
        raise _PassingError("http-wrong-range", f"{url}: a body longer than its range")
    return state, data


def _promised(
    response: BaseHTTPResponse, url: str, first: int, size: int
) -> tuple[RemoteState, int]:
    """Return size and ETag of the file, and the bytes that an answer has by its status and headers."""
    if response.status == 200:
        raise UnreadableShardError(
            "http-no-ranges", f"{url}: the server sends whole files only, not the ranges asked for"
        )
    if response.status not in (206, 416):
        raise UnreadableShardError(f"http-{response.status}", f"{url}: HTTP {response.status}")
    text = response.headers.get("Content-Range")
    if text is None:
        raise UnreadableShardError("http-no-ranges", f"{url}: an answer without Content-Range")
    match = _CONTENT_RANGE.fullmatch(text)
    whole = int(match[3]) if match else 0
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
    state = RemoteState(whole, mark)
    if response.status == 416 and match and not match[1] and whole <= first:
        return state, 0  # the range begins after the end of the file
    if response.status == 206 and match and match[1]:
        last = int(match[2])
        length = last - first + 1
        said = response.headers.get("Content-Length", str(length))
        if int(match[1]) == first <= last < min(first + size, whole) and said == str(length):
            return state, length
    raise _PassingError("http-wrong-range", f"{url}: another range than the one asked for, {text}")


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """Return the seconds that a server wants to be left alone; None if it gives none, or nonsense."""
    try:
        return Retry().get_retry_after(response)
    except (HTTPError, ValueError, OverflowError):
        return None


# End, by time.monotonic, and largest number of bytes of the answers that are read in this context.
_BOUNDS: ContextVar[tuple[float, int]] = ContextVar("_BOUNDS")


class _Bounded(RawIOBase):
    """The bytes of one answer, headers included, within its bounds.

    The timeout of a socket alone begins anew with every byte, so that a server may send one at a time.
    """

    def __init__(self, raw: Any, sock: Any) -> None:
        self._raw, self._sock = raw, sock
        self._end, self._most = _BOUNDS.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end in time")
        self._sock.settimeout(left)
        got: int | None = self._raw.readinto(buffer)
        self._most -= got or 0
        if self._most < 0:
            raise OSError("the answer is larger than what was asked for")
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = BufferedReader(_Bounded(self.fp.detach(), sock))


class _HTTP(HTTPConnection):
    response_class = _Response


class _HTTPS(HTTPSConnection):
    response_class = _Response


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPS


def _proxy(url: str) -> str | None:
    """The proxy that the environment (``https_proxy``, ``no_proxy`` …) names for a URL."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


@lru_cache(maxsize=4)
def _pool(process: int, proxy: str | None) -> PoolManager:
    """Return the connections of this process; a forked process must not use those of its parent."""
    pool: PoolManager
    if proxy is None:
        pool = PoolManager(maxsize=4)
    else:
        user = urlsplit(proxy).netloc.rpartition("@")[0]
        headers = make_headers(proxy_basic_auth=unquote(user)) if user else None
        pool = ProxyManager(proxy, maxsize=4, proxy_headers=headers)
    pool.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return pool
