"""The page over HTTP, read-only."""

from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Nothing but the page's own files, even if a prompt should smuggle in a tag.
_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class GalleryServer(ThreadingHTTPServer):
    """Serves a folder; its page is made anew for every visit, so that curves grow with their run.

    Args:
        address: host and port; port 0 takes a free one.
        folder: with the page and its images.
        refresh: writes the page again.

    Raises:
        OSError: the address cannot be had.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], folder: Path, refresh: Callable[[], None]) -> None:
        self.refresh = refresh
        super().__init__(address, partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


class _Handler(SimpleHTTPRequestHandler):
    server: GalleryServer

    def do_GET(self) -> None:
        if self.path.partition("?")[0] in ("/", "/index.html"):
            self.server.refresh()
        super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Folders are not shown."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Visits are nobody's business."""
