"""The gallery's server: many visits at once, and requests that it does not answer."""

import http.client
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from showo_data.files import written_aside
from showo_dist.report.gallery.cli import Gallery, GalleryServer, serve
from showo_dist.report.gallery.generating import Settings

PAGE = "<p>" + "a" * 200_000 + "</p>"


@contextmanager
def _served(
    folder: Path, host: str = "127.0.0.1", refresh: Callable[[], None] | None = None
) -> Iterator[GalleryServer]:
    def write() -> None:
        with written_aside(folder / "index.html") as file:
            file.write(PAGE.encode())

    with GalleryServer((host, 0), folder, refresh or write) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=30)


def _get(
    server: GalleryServer, path: str, host: str | None = None, method: str = "GET"
) -> tuple[int, str]:
    """Status and body of a request as it is, without the checks of a polite client."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_many_visits_at_once_all_get_the_page(tmp_path: Path) -> None:
    with _served(tmp_path) as server, ThreadPoolExecutor(40) as visitors:
        answers = list(visitors.map(lambda _: _get(server, "/"), range(200)))
    assert answers == [(200, PAGE)] * 200
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_page_that_cannot_be_written_is_the_last_one(tmp_path: Path) -> None:
    def fail() -> None:
        Path("/dev/full").write_text("x" * 10)

    (tmp_path / "index.html").write_text("before")
    with _served(tmp_path, refresh=fail) as server:
        assert _get(server, "/") == (200, "before")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_nothing_outside_the_folder_is_served(
    tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, secret = tmp_path / "gallery", tmp_path / "secret"
    secret.mkdir()
    (secret / "x.txt").write_text("secret")
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "own.txt").write_text("own")
    (folder / "images" / "link.txt").symlink_to("own.txt")
    (folder / "file").symlink_to(secret / "x.txt")
    (folder / "relative").symlink_to("../secret/x.txt")
    (folder / "folder").symlink_to(secret)
    (folder / "second").symlink_to("folder")
    (folder / "loop").symlink_to("loop")
    outside = ["/file", "/relative", "/folder/x.txt", "/second/x.txt", "/folder/", "/loop"]
    odd = ["/%00", "/images/%00", "/images/own.txt%00", "/%00/../x", "/../secret/x.txt"]
    odd += ["/%2e%2e/secret/x.txt", "//secret/x.txt", "/images/", f"/{'x' * 5000}", "/%ff%fe"]
    with _served(folder) as server:
        for path in ["/images/own.txt", "/images/link.txt"]:
            assert _get(server, path, method=method) == (200, "own" if method == "GET" else "")
        for path in outside + odd:
            status, body = _get(server, path, method=method)
            assert status == 404 and "secret" not in body, path
    assert "Traceback" not in capfd.readouterr().err


def test_only_names_of_this_machine_are_answered(tmp_path: Path) -> None:
    calls: list[int] = []
    (tmp_path / "index.html").write_text("page")
    with _served(tmp_path, refresh=lambda: calls.append(1)) as server:
        local = ["localhost", "localhost:8642", "LOCALHOST", "127.0.0.1", "127.1.2.3:5", "[::1]:80"]
        assert [_get(server, "/", host) for host in local] == [(200, "page")] * len(local)
        count = len(calls)
        for host in ("evil.example", "evil.example:8642", "", "10.0.0.1", "localhost.evil", "[::1"):
            status, body = _get(server, "/", host)
            assert status == 403 and "page" not in body, host
        assert len(calls) == count, "another host made it write"
    with _served(tmp_path, host="0.0.0.0", refresh=lambda: None) as server:
        assert _get(server, "/", "node7.cluster:8642") == (200, "page")


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_an_address_that_is_not_available_is_one_line(tmp_path: Path, host: str) -> None:
    gallery = Gallery([], [], Settings(("a ring",)), tmp_path)
    with _served(tmp_path) as server:
        port = int(server.server_address[1])
        with pytest.raises(ValueError, match=f"--host {host} --port {port}: "):
            serve(gallery, host, port)
