"""``showo-dist export``, ``import`` and ``inspect``."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from showo_dist.export.folders import DTYPES, LAYOUTS, Track, export, import_model
from showo_dist.export.inspecting import inspect


def _progress(title: str) -> Track:
    """A progress bar on a terminal; nothing in a log file."""

    def wrap(names: Iterable[str]) -> Iterable[str]:
        names = list(names)
        console = Console(stderr=True)
        return track(
            names, title, total=len(names), console=console, disable=not console.is_terminal
        )

    return wrap


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"showo-dist {command}", description=description)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--shard-gb", type=float, default=2.0, help="largest safetensors file, in GB (%(default)s)"
    )


def _shard_bytes(gigabytes: float) -> int:
    if not gigabytes > 0:
        raise ValueError(f"--shard-gb {gigabytes}: expected a number above 0")
    return max(1, int(gigabytes * 1e9))


def main_export(argv: Sequence[str]) -> int:
    """``showo-dist export CKPT --out DIR [--to showo|safetensors] [--dtype D] [--weights model|ema] …``."""
    parser = _parser("export", "Write a model folder from a checkpoint.")
    parser.add_argument("checkpoint", help="checkpoint, model folder or hub id")
    parser.add_argument("--to", choices=LAYOUTS, default="safetensors", help="layout (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="convert to; default: do not convert")
    parser.add_argument(
        "--merge-lora", action="store_true", help="merge the adapters of a LoRA run"
    )
    parser.add_argument(
        "--weights",
        choices=("model", "ema"),
        default="model",
        help="the trained weights, or their moving average of training.ema (%(default)s)",
    )
    _add_sizes(parser)
    arguments = parser.parse_args(argv)
    export(
        arguments.checkpoint,
        arguments.out,
        layout=arguments.to,
        dtype=arguments.dtype,
        merge_lora=arguments.merge_lora,
        averaged=arguments.weights == "ema",
        shard_bytes=_shard_bytes(arguments.shard_gb),
        track=_progress("export"),
    )
    print(f"wrote {arguments.out}")
    return 0


def main_import(argv: Sequence[str]) -> int:
    """``showo-dist import DIR --out CKPT``."""
    parser = _parser("import", "Make a checkpoint from a model folder.")
    parser.add_argument("model", help="released folder, export or hub id")
    _add_sizes(parser)
    arguments = parser.parse_args(argv)
    import_model(
        arguments.model,
        arguments.out,
        shard_bytes=_shard_bytes(arguments.shard_gb),
        track=_progress("import"),
    )
    print(f"wrote {arguments.out}; start a run from it with experiment.init_from={arguments.out}")
    return 0


def main_inspect(argv: Sequence[str]) -> int:
    """``showo-dist inspect CKPT``."""
    parser = _parser("inspect", "Show the content of a checkpoint or model folder.")
    parser.add_argument("checkpoint", help="checkpoint, model folder or hub id")
    arguments = parser.parse_args(argv)
    console = Console()
    # On a terminal, tables have its width; elsewhere they are wide enough for all columns.
    width = None if console.is_terminal else 200
    Console(file=sys.stdout, width=width).print(inspect(arguments.checkpoint))
    return 0
