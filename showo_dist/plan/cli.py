"""``showo-dist plan config=FILE [key=value …] --hosts 6 --gpus-per-host 8 --gpu h200``."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from showo_dist.config import TrainConfig, load
from showo_dist.config.rules import check, no_flow

_WIDTH = 120  # of the tables; narrower, numbers would be cut off


def parser() -> argparse.ArgumentParser:
    """The options of the command; all other arguments belong to the config."""
    parser = argparse.ArgumentParser(
        prog="showo-dist plan",
        usage="showo-dist plan config=FILE [key=value …] [options]",
        description="Memory, traffic and time of a run on any cluster, without starting anything.",
    )
    parser.add_argument("--hosts", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--gpus-per-host", type=int, default=8, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--gpu",
        default="h200",
        metavar="NAME",
        help="h200, h100, a100; h200-fa3, h100-fa3: with FlashAttention 3; several with --advise: h200,a100",
    )
    parser.add_argument(
        "--link-gbit", type=float, metavar="G", help="Gb/s between two hosts over all network cards"
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        metavar="T",
        help="tokens of a caption, text or conversation (default: as many as the config allows)",
    )
    parser.add_argument(
        "--encoded", action="store_true", help="the shards hold image codes: no encoder runs"
    )
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        default=[1, 2],
        metavar="S",
        help="micro-batch sizes to predict, as factors of the config's",
    )
    _add_kinds(parser)
    return parser


def _add_kinds(parser: argparse.ArgumentParser) -> None:
    """Options that print something else than the tables."""
    parser.add_argument(
        "--dry-run", action="store_true", help="build the engine as every rank in turn"
    )
    parser.add_argument(
        "--recomputation",
        type=float,
        metavar="GB",
        help="only check whether model.gradient_checkpointing is needed on GPUs of so much memory",
    )
    parser.add_argument(
        "--ledger",
        action="store_true",
        help="the config's own step, part by part: kernels, bytes, copies, waits, microseconds",
    )
    parser.add_argument(
        "--advise",
        action="store_true",
        help="only print the keys of the fastest setting that fits, with the same global batch",
    )
    parser.add_argument(
        "--scaling",
        type=Path,
        metavar="PNG",
        help="predict 1 to 1,024 GPUs: print a table, write this plot",
    )


def main(argv: Sequence[str]) -> int:
    """Print the plan; return 1 if the config's own setting does not fit in memory, else 0.

    Raises:
        ValueError: an option or key is wrong.
    """
    options, arguments = parser().parse_known_args(list(argv))
    _check(options)
    config = load(arguments, TrainConfig, check=False)
    check(config, for_training=False)
    _refuse_unpredicted(config)
    if options.scaling is not None and config.training.tokens_per_step is not None:
        raise ValueError(
            "--scaling: counts micro-steps of training.batch_size_*; set training.tokens_per_step=null"
        )
    from showo_dist.plan import advise, ledger_report, report, scaling
    from showo_dist.plan.timing import gpu

    for name in options.gpu.split(",") if options.advise else [options.gpu]:
        gpu(name)  # raises for an unknown name
    warnings.simplefilter("ignore", FutureWarning)  # from DeepSpeed
    console = Console(width=max(_WIDTH, Console().width))
    if options.advise:
        return advise.show(config, options, console)
    if options.scaling is not None:
        return scaling.show(config, options, console)
    if options.recomputation is not None:
        return report.show_recomputation(config, options, console)
    if options.ledger:
        return ledger_report.show_ledger(config, options, console)
    if options.dry_run:
        return report.show_dry_run(config, options, console)
    return report.show_plan(config, options, console)


def _check(options: argparse.Namespace) -> None:
    for name in ("hosts", "gpus_per_host"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: 1 or more")
    if options.text_tokens is not None and options.text_tokens < 0:
        raise ValueError(f"--text-tokens {options.text_tokens}: 0 or more")
    if min(options.scales) < 1:
        raise ValueError(f"--scales {min(options.scales)}: 1 or more")
    if options.link_gbit is not None and options.link_gbit <= 0:
        raise ValueError(f"--link-gbit {options.link_gbit}: more than 0")


def _refuse_unpredicted(config: TrainConfig) -> None:
    for line in no_flow(config):
        raise ValueError(line)
    if config.lora.rank:
        raise ValueError(
            f"lora.rank = {config.lora.rank}: adapters are not predicted; with lora.rank=0 all weights are "
            "planned as trained, which needs far more memory"
        )
    if config.distributed.engine != "deepspeed":
        raise ValueError(
            f"distributed.engine = {config.distributed.engine}: only DeepSpeed's memory is predicted; plan "
            "with distributed.engine=deepspeed and distributed.zero_stage=0"
        )
    for key in ("offload_optimizer", "offload_param"):
        if getattr(config.distributed, key) != "none":
            raise ValueError(
                f"distributed.{key} = {getattr(config.distributed, key)}: memory of the host and its "
                f"bus are not predicted; plan with distributed.{key}=none"
            )
