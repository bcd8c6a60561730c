"""A web server on this machine that answers range requests, and misbehaves as a test asks it to."""

import multiprocessing
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """An answer that may be changed before it is sent.

    Attributes:
        line: the status line.
        whole, start: the file, and where in it the body begins.
        headers_s, body_s: seconds between single bytes; None: all at once.
        repeats: how often the body is sent.
    """

    line: str
    headers: dict[str, str]
    body: bytes
    whole: bytes = b""
    start: int = 0
    headers_s: float | None = None
    body_s: float | None = None
    repeats: int = 1


# What an answer may be instead of the right one: a status, a delay in seconds, a cut body, a lost connection,
# or what a function makes of the right one.
Fault = int | float | str | None | Callable[[Answer], None]
# Chooses from the path and how many requests for it came before.
Faults = Callable[[str, int], Fault]


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of a folder; ``faults`` may be changed while it runs."""

    daemon_threads = True

    def __init__(self, folder: Path, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults = folder, faults
        self.etags = False
        self.requests: Counter[str] = Counter()
        self.injected: Counter[Any] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where the folder is found."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def do_GET(self) -> None:
        with self.server.lock:
            before = self.server.requests[self.path]
            self.server.requests[self.path] += 1
            fault = self.server.faults(self.path, before)
            self.server.injected[fault] += fault is not None
        if isinstance(fault, float):
            time.sleep(fault)
        answer = self._right()
        if isinstance(fault, int):
            answer = _answer(fault, b"no")
        elif fault == "whole":
            answer = _answer(200, answer.whole)
        elif fault == "cut":
            answer.body = answer.body[: len(answer.body) // 2]
        elif callable(fault):
            fault(answer)
        self.close_connection = fault not in (None, "whole") and not isinstance(fault, int | float)
        if self.close_connection:
            answer.headers["Connection"] = "close"
        if fault != "lost":
            with suppress(OSError):  # a client that does not wait for the end
                self._send(answer)

    def _right(self) -> Answer:
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            return _answer(404, b"no such file")
        content, wanted = path.read_bytes(), self.headers.get("Range", "")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if match is None:
            return _answer(200, content)
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        if first >= len(content):
            answer = _answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        else:
            place = f"bytes {first}-{last}/{len(content)}"
            answer = _answer(206, content[first : last + 1], **{"Content-Range": place})
        answer.whole, answer.start = content, first
        if self.server.etags:
            answer.headers["ETag"] = f'"{zlib.crc32(content)}"'
        return answer

    def _send(self, answer: Answer) -> None:
        lines = [answer.line, *(f"{name}: {value}" for name, value in answer.headers.items())]
        self._write("\r\n".join([*lines, "", ""]).encode("latin-1"), answer.headers_s)
        for _ in range(answer.repeats):
            self._write(answer.body, answer.body_s)

    def _write(self, data: bytes, pause_s: float | None) -> None:
        for i in range(len(data)) if pause_s is not None else ():
            self.wfile.write(data[i : i + 1])
            time.sleep(pause_s or 0)
        self.wfile.write(data if pause_s is None else b"")

    def log_message(self, format: str, *values: object) -> None:
        """Do not log requests."""


def _answer(status: int, body: bytes, **headers: str) -> Answer:
    return Answer(
        f"HTTP/1.1 {status} OK", {"Content-Length": str(len(body)), **headers}, body, whole=body
    )


@contextmanager
def serving(folder: Path, faults: Faults = lambda path, before: None) -> Iterator[FaultyServer]:
    """A running server of ``folder``."""
    with FaultyServer(folder, faults) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving_apart(folder: Path, faults: Faults) -> Iterator[str]:
    """The URL of a server in a process of its own, for tests that fork: forks and threads do not mix."""
    with FaultyServer(folder, faults) as server:
        process = multiprocessing.get_context("fork").Process(target=server.serve_forever)
        process.start()
        server.socket.close()  # forks must not hold it open
        try:
            yield server.url
        finally:
            process.terminate()
            process.join()
