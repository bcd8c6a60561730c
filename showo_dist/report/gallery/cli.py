"""``showo-dist gallery RUN…``: generate with every checkpoint, then serve the page or export it."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.progress import track

from showo_data.text import read_lines
from showo_dist.evaluation.job import write_text
from showo_dist.generation.networks import read_model_config
from showo_dist.report.gallery.checkpoints import Run, find_runs
from showo_dist.report.gallery.generating import Generated, Settings, generate_images
from showo_dist.report.gallery.page import gallery_page

INDEX = "index.html"
# The page may load its own files alone, even if a prompt should get past the escaping as a tag.
_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Gallery:
    """The page of some runs, in the folder ``out``."""

    runs: list[Run]
    generated: list[Generated]
    settings: Settings
    out: Path

    def write(self) -> None:
        """Write the page, with the curves as the runs' metrics are now."""
        title = "Gallery: " + ", ".join(run.name for run in self.runs)
        write_text(self.out / INDEX, gallery_page(title, self.runs, self.generated, self.settings))


def build(
    runs: list[Run], settings: Settings, out: Path, device: str | None = None, batch: int = 8
) -> Gallery:
    """Generate the missing images, with a progress bar, and write the page.

    Raises:
        ValueError, OSError: a checkpoint cannot be read.
    """
    checkpoints = [checkpoint for run in runs for checkpoint in run.checkpoints]
    generated = [
        generate_images(checkpoint, settings, out, device, batch)
        for checkpoint in track(checkpoints, description="generation")
    ]
    gallery = Gallery(runs, generated, settings, out)
    gallery.write()
    return gallery


def read_prompts(arguments: argparse.Namespace, runs: list[Run]) -> tuple[str, ...]:
    """Prompts of the command line, else the validation prompts of the last run.

    Raises:
        ValueError: the file cannot be read, or there are none.
    """
    if arguments.prompt:
        return tuple(arguments.prompt)
    path = arguments.prompts or _validation_prompts(runs[-1])
    try:
        lines = [line.strip() for line in read_lines(path)]
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; name prompts with --prompts or --prompt"
        ) from None
    prompts = tuple(line for line in lines if line)[: arguments.limit]
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def _validation_prompts(run: Run) -> str:
    folder = run.checkpoints[-1].folder
    path = read_model_config(folder).dataset.params.validation_prompts_file
    if path is None:
        raise ValueError(
            f"{folder}: its config names no prompts: add --prompts FILE or --prompt TEXT"
        )
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("showo-dist gallery", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run, folder of runs, or checkpoint"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="export to this folder instead of serving; when serving: RUN/gallery",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (%(default)s)")
    parser.add_argument("--port", type=int, default=8642, help="0: any free one (%(default)s)")
    parser.add_argument("--prompts", type=Path, help="text file, one prompt per line")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="repeat for more")
    parser.add_argument("--limit", type=int, default=8, help="most prompts of a file (%(default)s)")
    parser.add_argument(
        "--columns", type=int, default=4, help="most checkpoints of a run (%(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=2, help="prompts whose rounds are kept (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--steps", type=int, help="rounds per image; default: the config's")
    parser.add_argument("--guidance", type=float, help="w of guidance; default: the config's")
    parser.add_argument("--batch", type=int, default=8, help="generated together (%(default)s)")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--vq-model", help="image tokenizer instead of the config's")
    parser.add_argument("--tokenizer", help="text tokenizer instead of the config's")
    parser.add_argument("--clip-model", help="CLIP tower instead of the config's")
    return parser


class GalleryServer(ThreadingHTTPServer):
    """Serves a folder read-only; the page is written again for every request, so curves are up to date.

    At a loopback address, it answers only requests that name this machine: a page from elsewhere could give
    its own name this address (DNS rebinding). Nothing outside the folder is served, not through links either.

    Args:
        address: host and port; port 0 takes a free one.
        folder: with the page and its images.
        refresh: writes the page.

    Raises:
        OSError: the address is not available.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that wait; five by default, and the next ones fail

    def __init__(self, address: tuple[str, int], folder: Path, refresh: Callable[[], None]) -> None:
        self.refresh = refresh
        self.folder = folder.resolve()
        super().__init__(address, partial(_Handler, directory=str(folder)))

    def answers(self, host: str) -> bool:
        """Whether a request with this Host header is answered."""
        return not _is_local(str(self.server_address[0])) or _is_local(host)

    def holds(self, path: str) -> bool:
        """Whether a path is in the folder once links are followed."""
        with suppress(OSError, RuntimeError):  # a loop of links
            return Path(path).resolve().is_relative_to(self.folder)
        return False

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


def _is_local(host: str) -> bool:
    """Whether a host, perhaps with a port, is this machine by any name that needs no name server."""
    with suppress(ValueError):
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return name == "localhost" or name.endswith(".localhost") or ip_address(name).is_loopback
    return False


class _Handler(SimpleHTTPRequestHandler):
    server: GalleryServer

    def do_GET(self) -> None:
        shown = self.path.partition("?")[0] in ("/", f"/{INDEX}")
        if shown and self.server.answers(self.headers.get("Host", "")):
            with suppress(OSError):  # on a full disk the last page is served
                self.server.refresh()
        super().do_GET()

    def send_head(self) -> Any:
        """Refuse requests for another host, and paths out of the folder."""
        if not self.server.answers(self.headers.get("Host", "")):
            self.send_error(403, "this gallery is served to its own machine alone")
        elif "\0" in unquote(self.path) or not self.server.holds(self.translate_path(self.path)):
            self.send_error(404)
        else:
            return super().send_head()
        return None

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Do not list folders."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def main(argv: list[str]) -> int:
    """Export or serve; return the exit code."""
    arguments = _parser().parse_args(argv)
    for name in ("columns", "steps", "batch", "limit", "frames"):
        value, least = getattr(arguments, name), 0 if name == "frames" else 1
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")
    runs = find_runs(arguments.runs, arguments.columns)
    settings = Settings(
        read_prompts(arguments, runs),
        arguments.seed,
        arguments.steps,
        arguments.guidance,
        arguments.frames,
        arguments.vq_model,
        arguments.tokenizer,
        arguments.clip_model,
    )
    out = arguments.out or arguments.runs[0] / "gallery"
    gallery = build(runs, settings, out, arguments.device, arguments.batch)
    if arguments.out is not None:
        print(f"{out / INDEX}")
        return 0
    return serve(gallery, arguments.host, arguments.port)


def serve(gallery: Gallery, host: str, port: int) -> int:
    """Serve until interrupted; return the exit code.

    Raises:
        ValueError: the address is not available.
    """
    try:
        server = GalleryServer((host, port), gallery.out, gallery.write)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port}: {error}") from None
    with server:
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
