"""The commands ``showo-dist shards``, ``showo-dist mini-data`` and ``showo-dist mini-edits``."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from showo_data.convert.cli import add_converters, run
from showo_data.mini.edits import EditSettings, write_edits
from showo_data.mini.writing import MiniSettings, write_mini
from showo_data.shards import build_index, verify
from showo_data.shards.storage import add_storage_options, storage_of
from showo_data.sheet import contact_sheet, previews

_URLS = "paths or brace patterns such as 'data/train-{000000..000009}.tar'"


def main_shards(argv: list[str]) -> int:
    """Run ``shards index|verify|show|from-…``; returns the exit code, 1 if ``verify`` finds a damaged shard.

    Raises:
        ValueError, OSError: errors that the user can correct, for the caller to print as one line.
    """
    arguments = _shards_parser().parse_args(argv)
    actions = {"index": _index, "verify": _verify, "show": _show}
    return actions.get(arguments.action, run)(arguments, Console())


def main_mini(argv: list[str]) -> int:
    """Run ``mini-data OUT``: write the mini world; shards that are already complete are kept."""
    return _write(argv, "mini-data", "Write the mini world as shards.", MiniSettings, write_mini)


def main_edits(argv: list[str]) -> int:
    """Run ``mini-edits OUT``: write edits of the mini world; shards that are already complete are kept."""
    text = "Write edits of the mini world as shards."
    return _write(argv, "mini-edits", text, EditSettings, write_edits)


def _write(
    argv: list[str], command: str, text: str, settings: Any, write: Callable[..., None]
) -> int:
    """Write shards to a folder with the settings that the command line gives."""
    parser = argparse.ArgumentParser(prog=f"showo-dist {command}", description=text)
    parser.add_argument("out", help="the folder to write to")
    for option in fields(settings):
        name = "--" + option.name.replace("_", "-")
        kind = type(option.default)
        parser.add_argument(name, type=kind, default=option.default, help="default %(default)s")
    values = vars(parser.parse_args(argv))
    out = Path(values.pop("out"))
    with Progress() as progress:
        task = progress.add_task(f"shards in {out}", total=None)
        write(
            out,
            settings(**values),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    return 0


def _shards_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="showo-dist shards", description="Index, check, show and convert shards."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (
        ("index", "write the index of every shard beside it"),
        ("verify", "compare every shard with the checksum in its index"),
        ("show", "print some samples, and write their images on one sheet"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("urls", nargs="+", metavar="URLS", help=_URLS)
        add_storage_options(action)
    action.add_argument("--samples", type=int, default=32, help="default %(default)s")
    action.add_argument("--out", type=Path, help="write the sheet to this PNG")
    add_converters(actions)
    return parser


def _index(arguments: argparse.Namespace, console: Console) -> int:
    storage = storage_of(arguments)
    with Progress(console=console) as progress:
        track = partial(progress.track, description="indexing")
        headers = build_index(arguments.urls, storage, track)
    samples, size = sum(h.samples for h in headers), sum(h.size for h in headers)
    console.print(f"{len(headers)} shards, {samples} samples, {size / 1e6:.1f} MB")
    return 0


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    bad = 0
    for shard, wrong in verify(arguments.urls, storage_of(arguments)):
        bad += bool(wrong)
        console.print(escape(f"{shard}: {wrong or 'sound'}"), soft_wrap=True)
    return 1 if bad else 0


def _show(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.samples < 1:
        raise ValueError(f"--samples must be at least 1, not {arguments.samples}")
    shown = previews(arguments.urls, arguments.samples, storage_of(arguments))
    for sample in shown:
        console.print(f"[bold]{escape(sample.key)}[/bold] {', '.join(sample.extensions)}")
        console.print(escape(sample.words), soft_wrap=True)
    images = [sample.image for sample in shown if sample.image is not None]
    if arguments.out is not None and images:
        contact_sheet(images).save(arguments.out)
        console.print(f"{len(images)} images on {arguments.out}", soft_wrap=True)
    return 0
