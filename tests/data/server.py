"""A web server on this machine that answers range requests, and misbehaves as a test asks it to."""

import multiprocessing
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# What an answer may be instead of the right one: a status, a delay in seconds, a cut body, a lost connection.
Fault = int | float | str | None
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
        if isinstance(fault, int):
            self._answer(fault, b"no")
        elif fault == "lost":
            self.close_connection = True
        else:
            self._send_file(cut=fault == "cut", whole=fault == "whole")

    def _send_file(self, cut: bool, whole: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self._answer(404, b"no such file")
            return
        content, wanted = path.read_bytes(), self.headers.get("Range", "")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if match is None or whole:
            self._answer(200, content)
            return
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        if first >= len(content):
            self._answer(416, b"", f"bytes */{len(content)}")
            return
        part = content[first : last + 1]
        self._answer(206, part, f"bytes {first}-{last}/{len(content)}", cut)

    def _answer(self, status: int, body: bytes, range_: str = "", cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if range_:
            self.send_header("Content-Range", range_)
            if self.server.etags:
                content = (self.server.folder / self.path.lstrip("/")).read_bytes()
                self.send_header("ETag", f'"{zlib.crc32(content)}"')
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut or self.close_connection

    def log_message(self, format: str, *values: object) -> None:
        """Do not log requests."""


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
