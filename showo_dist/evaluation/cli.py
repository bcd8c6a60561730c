"""What ``--framework`` can name.

``showo-dist evaluate --framework NAME CHECKPOINT… --out DIR``, in one process or under a launcher."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from showo_dist.evaluation import answered, mini
from showo_dist.evaluation import generated as generated
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.results import Outcome, conclude
from showo_dist.generation.pipeline import Pipeline
from showo_dist.runtime.ranks import Ranks, joined


@dataclass(frozen=True)
class Framework:
    """A way to evaluate checkpoints.

    Attributes:
        help: one line about it.
        batch: images or questions at a time, unless the command line says otherwise.
        generates: whether it takes the options of generation.
        add_arguments: declares its own options.
        run: evaluates one checkpoint; called on every rank.
    """

    help: str
    batch: int
    generates: bool
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Job], Outcome]


FRAMEWORKS: dict[str, Framework] = {
    "mini": Framework(mini.HELP, mini.BATCH, True, mini.add_arguments, mini.run),
    **{
        name: Framework(
            benchmark.help,
            generated.BATCH,
            True,
            partial(generated.add_arguments, benchmark),
            partial(generated.run, benchmark),
        )
        for name, benchmark in generated.BENCHMARKS.items()
    },
    **{
        name: Framework(
            benchmark.help,
            answered.BATCH,
            False,
            partial(answered.add_arguments, benchmark),
            partial(answered.run, benchmark),
        )
        for name, benchmark in answered.BENCHMARKS.items()
    },
}


PROGRAM = "showo-dist evaluate"
_COUNTS = ("batch", "steps", "limit", "samples", "max_new_tokens")
# Ranks wait for each other at the end of a checkpoint only; how long depends on the slowest of them.
_PATIENCE_S = 24 * 3600.0


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser with the options of the framework that ``argv`` names."""
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, add_help=False)
    listing = "; ".join(f"{name}: {item.help}" for name, item in FRAMEWORKS.items())
    parser.add_argument("--framework", choices=FRAMEWORKS, default="mini", help=listing)
    known, _ = parser.parse_known_args(argv)
    framework = FRAMEWORKS[known.framework]
    parser.add_argument("-h", "--help", action="help", help="show this text")
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that it leaves")
    parser.add_argument(
        "--replace", action="store_true", help="throw away another evaluation in that folder"
    )
    if framework.generates:
        parser.add_argument("--steps", type=int, help="rounds per image; default: the config's")
        parser.add_argument("--guidance", type=float, help="w of guidance; default: the config's")
        parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument(
        "--batch",
        type=int,
        default=framework.batch,
        help="images or questions computed together (%(default)s)",
    )
    parser.add_argument("--vq-model", help="image tokenizer instead of the config's")
    parser.add_argument("--tokenizer", help="text tokenizer instead of the config's")
    parser.add_argument("--clip-model", help="CLIP tower instead of the config's")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--device", help="default: the GPU if there is one")
    framework.add_arguments(parser)
    return parser


def output_folders(checkpoints: list[str], out: Path) -> list[Path]:
    """``out`` itself for one checkpoint, else a folder each, ``out/RUN-CHECKPOINT``.

    Raises:
        ValueError: two checkpoints would share a folder.
    """
    if len(checkpoints) == 1:
        return [out]
    folders = [out / "-".join(Path(checkpoint).resolve().parts[-2:]) for checkpoint in checkpoints]
    if len(set(folders)) < len(folders):
        raise ValueError(f"two of the checkpoints would write into one folder of --out {out}")
    return folders


def main(argv: list[str]) -> int:
    """Evaluate every checkpoint that the command line names; returns the exit code."""
    arguments = build_parser(argv).parse_args(argv)
    for name in _COUNTS:
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    folders = output_folders(arguments.checkpoints, arguments.out)
    with joined(_PATIENCE_S) as ranks:
        outcomes = [
            _evaluate(arguments, checkpoint, folder, ranks)
            for checkpoint, folder in zip(arguments.checkpoints, folders, strict=True)
        ]
        if ranks.is_first:
            conclude(arguments.framework, outcomes)
    return 0


def _evaluate(
    arguments: argparse.Namespace, checkpoint: str, folder: Path, ranks: Ranks
) -> Outcome:
    pipeline = Pipeline.load(
        checkpoint,
        device=arguments.device or ranks.device,
        vq_model=arguments.vq_model,
        tokenizer=arguments.tokenizer,
        clip_model=arguments.clip_model,
        precision=arguments.precision,
    )
    return FRAMEWORKS[arguments.framework].run(Job(pipeline, arguments, checkpoint, folder, ranks))
