"""``showo-dist evaluate --framework NAME CHECKPOINT… --out DIR``: generate, answer and score.

Runs in one process or under a launcher."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from showo_dist.evaluation import mini, mini_edits
from showo_dist.evaluation.dpg import DPG
from showo_dist.evaluation.editing import GEDIT, IMGEDIT
from showo_dist.evaluation.flickr30k import FLICKR30K
from showo_dist.evaluation.geneval import GENEVAL
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.mmmu import MMMU
from showo_dist.evaluation.results import Outcome, conclude
from showo_dist.evaluation.vqa import GQA, MME, POPE, VQAV2
from showo_dist.evaluation.wise import WISE
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import add_sampling_options
from showo_dist.runtime.lock import held
from showo_dist.runtime.ranks import PATIENCE_S, Ranks, joined


@dataclass(frozen=True)
class Framework:
    """A way to evaluate checkpoints.

    Attributes:
        help: one line about it.
        batch: default number of images or questions computed together.
        generates: whether it takes the options of generation.
        add_arguments: declares its own options.
        run: evaluates one checkpoint; called on every rank.
    """

    help: str
    batch: int
    generates: bool
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Job], Outcome]


IMAGES = {"geneval": GENEVAL, "dpg": DPG, "wise": WISE, "imgedit": IMGEDIT, "gedit": GEDIT}
UNDERSTANDING = {
    "pope": POPE,
    "mme": MME,
    "gqa": GQA,
    "vqav2": VQAV2,
    "flickr30k": FLICKR30K,
    "mmmu": MMMU,
}
FRAMEWORKS: dict[str, Framework] = {
    "mini": Framework(mini.HELP, 32, True, mini.add_arguments, mini.run),
    "mini-edit": Framework(mini_edits.HELP, 32, True, mini_edits.add_arguments, mini_edits.run),
    **{name: Framework(b.help, 8, True, b.add_arguments, b.run) for name, b in IMAGES.items()},
    **{
        name: Framework(b.help, 32, False, b.add_arguments, b.run)
        for name, b in UNDERSTANDING.items()
    },
}

PROGRAM = "showo-dist evaluate"
_COUNTS = ("batch", "steps", "limit", "samples", "max_new_tokens")


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """A parser with the options of the framework that ``argv`` names."""
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, add_help=False)
    listing = "; ".join(f"{name}: {item.help}" for name, item in FRAMEWORKS.items())
    parser.add_argument("--framework", choices=FRAMEWORKS, default="mini", help=listing)
    known, _ = parser.parse_known_args(argv)
    framework = FRAMEWORKS[known.framework]
    parser.add_argument("-h", "--help", action="help", help="show this text")
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument(
        "--replace", action="store_true", help="delete another evaluation in that folder"
    )
    if framework.generates:
        add_sampling_options(parser)
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
    """``out`` itself for one checkpoint, else ``out/RUN-CHECKPOINT`` for each.

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
    """Evaluate every checkpoint that the command line names; return the exit code."""
    arguments = build_parser(argv).parse_args(argv)
    for name in _COUNTS:
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    if getattr(arguments, "seed", 0) < 0:
        raise ValueError(f"--seed {arguments.seed}: expected 0 or more")
    folders = output_folders(arguments.checkpoints, arguments.out)
    with joined(PATIENCE_S) as ranks:
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
    job = Job(pipeline, arguments, checkpoint, folder, ranks)
    with held(ranks, folder):
        return FRAMEWORKS[arguments.framework].run(job)
