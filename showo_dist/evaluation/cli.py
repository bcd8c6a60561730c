"""``showo-dist evaluate --framework NAME CHECKPOINT… --out DIR``."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from showo_dist.evaluation import mini
from showo_dist.generation.pipeline import Pipeline


@dataclass(frozen=True)
class Framework:
    """A way to score checkpoints.

    Attributes:
        help: one line about it.
        add_arguments: declares its own options.
        run: scores one checkpoint: (pipeline, options, the checkpoint's name, output folder).
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Pipeline, argparse.Namespace, str, Path], None]


FRAMEWORKS = {"mini": Framework(mini.HELP, mini.add_arguments, mini.run)}


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser with the options of the framework that ``argv`` names."""
    parser = argparse.ArgumentParser("showo-dist evaluate", description=__doc__, add_help=False)
    listing = "; ".join(f"{name}: {item.help}" for name, item in FRAMEWORKS.items())
    parser.add_argument("--framework", choices=FRAMEWORKS, default="mini", help=listing)
    known, _ = parser.parse_known_args(argv)
    parser.add_argument("-h", "--help", action="help", help="show this text")
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for scores and pictures")
    parser.add_argument("--steps", type=int, help="rounds per picture; default: the config's")
    parser.add_argument("--guidance", type=float, help="w of guidance; default: the config's")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--batch", type=int, default=32, help="pictures or questions at a time")
    parser.add_argument("--vq-model", help="image tokenizer instead of the config's")
    parser.add_argument("--tokenizer", help="text tokenizer instead of the config's")
    parser.add_argument("--device", help="default: the GPU if there is one")
    FRAMEWORKS[known.framework].add_arguments(parser)
    return parser


def output_folders(checkpoints: list[str], out: Path) -> list[Path]:
    """``out`` itself for one checkpoint, else a folder each, ``out/RUN-CHECKPOINT``."""
    if len(checkpoints) == 1:
        return [out]
    return [out / "-".join(Path(checkpoint).resolve().parts[-2:]) for checkpoint in checkpoints]


def main(argv: list[str]) -> int:
    """Evaluate every checkpoint that the command line names; returns the exit code."""
    arguments = build_parser(argv).parse_args(argv)
    for name in ("batch", "steps", "limit"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: expected 1 or more")
    framework = FRAMEWORKS[arguments.framework]
    folders = output_folders(arguments.checkpoints, arguments.out)
    for checkpoint, folder in zip(arguments.checkpoints, folders, strict=True):
        pipeline = Pipeline.load(
            checkpoint,
            device=arguments.device,
            vq_model=arguments.vq_model,
            tokenizer=arguments.tokenizer,
        )
        framework.run(pipeline, arguments, checkpoint, folder)
    return 0
