"""Predict weak and strong scaling from 1 to 1,024 GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from showo_dist.config import TrainConfig
from showo_dist.plan.report import hardware_of
from showo_dist.plan.shapes import Collective
from showo_dist.plan.study import Prediction, Study
from showo_dist.plan.timing import Cluster, Compute, step_time

GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Point:
    """Seconds per step and MFU on a number of GPUs; weak: same batch per GPU, strong: same global batch."""

    gpus: int
    weak_s: float
    weak_mfu: float
    strong_s: float
    strong_mfu: float


def points(study: Study, own: Prediction, micro_steps: int) -> list[Point]:
    """Predict the scaling curve of the config's own setting.

    Weak: every GPU takes the config's micro-batches. Strong: the global batch is that of 1,024 GPUs with one
    micro-step each; fewer GPUs accumulate gradients.

    Args:
        study: of the config.
        own: prediction of the config's own setting.
        micro_steps: per optimizer step of that prediction.
    """
    per_host = study.cluster.per_host
    uneven = [gpus for gpus in GPU_COUNTS if gpus > per_host and gpus % per_host]
    if uneven:
        raise ValueError(
            f"--gpus-per-host {per_host}: the scaling table has {uneven[0]} GPUs, which do not fill hosts of "
            "so many; give a power of two"
        )
    return [_point(study, own, gpus, micro_steps) for gpus in GPU_COUNTS]


def _cluster(study: Study, gpus: int) -> Cluster:
    per_host = min(gpus, study.cluster.per_host)
    return replace(study.cluster, hosts=max(1, gpus // per_host), per_host=per_host)


def _point(study: Study, own: Prediction, gpus: int, micro_steps: int) -> Point:
    cluster = _cluster(study, gpus)
    shares = gpus if own.setting.zero_stage else 1
    update = own.compute.optimizer_s * (study.cluster.ranks if own.setting.zero_stage else 1)
    compute = replace(own.compute, optimizer_s=update / shares)
    weak = step_time(compute, own.profile.collectives, cluster)
    accumulated = GPU_COUNTS[-1] // gpus
    many = _accumulating(compute, accumulated / micro_steps)
    calls = _repeated(own.profile.collectives, own.setting.zero_stage, accumulated)
    strong = step_time(many, calls, cluster)
    return Point(
        gpus,
        weak.total_s,
        weak.mfu(compute, study.gpu),
        strong.total_s,
        strong.mfu(many, study.gpu),
    )


def _accumulating(compute: Compute, factor: float) -> Compute:
    """The compute of a step with ``factor`` times as many micro-steps; the update stays the same."""
    return Compute(
        forward_s=compute.forward_s * factor,
        backward_s=compute.backward_s * factor,
        encoders_s=compute.encoders_s * factor,
        optimizer_s=compute.optimizer_s,
        useful_flops=compute.useful_flops * factor,
        launch_s=compute.launch_s * factor,
    )


def _repeated(calls: Sequence[Collective], stage: int, times: int) -> list[Collective]:
    """The collectives of ``times`` micro-steps: ZeRO-2 and 3 send in each of them, ZeRO-0 and 1 once."""
    if stage < 2:
        return list(calls)
    return [call for call in calls for _ in range(times if call.phase != "step" else 1)]


def show(config: TrainConfig, options: argparse.Namespace, console: Console) -> int:
    """Print the table of the scaling curve and write its plot; return the exit code."""
    row, cluster = hardware_of(options)
    single = deepcopy(config)
    single.training.gradient_accumulation_steps = 1
    study = Study(single, row, cluster, options.text_tokens, options.encoded)
    own = next(study.predictions([1], [config.distributed.zero_stage], both=False))
    curve = points(study, own, 1)
    console.print(_table(curve, options.gpu, own))
    plot(curve, options.scaling)
    console.print(f"plot: {options.scaling}")
    return 0


def _table(curve: Sequence[Point], gpu: str, own: Prediction) -> Table:
    table = Table(
        title=f"{gpu}, ZeRO-{own.setting.zero_stage}, {own.tokens:,} tokens per GPU (weak)"
    )
    for column in ("GPUs", "weak: ms", "MFU", "efficiency", "strong: ms", "MFU", "speed-up"):
        table.add_column(column, justify="right")
    for point in curve:
        table.add_row(
            f"{point.gpus:,}",
            f"{1000 * point.weak_s:.0f}",
            f"{point.weak_mfu:.1%}",
            f"{curve[0].weak_s / point.weak_s:.1%}",
            f"{1000 * point.strong_s:,.0f}",
            f"{point.strong_mfu:.1%}",
            f"{curve[0].strong_s / point.strong_s:,.1f}",
        )
    return table


def plot(curve: Sequence[Point], path: Path) -> None:
    """Plot MFU over the number of GPUs, weak and strong."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    gpus = [point.gpus for point in curve]
    axes.plot(gpus, [100 * p.weak_mfu for p in curve], "o-", label="weak: same batch per GPU")
    axes.plot(gpus, [100 * p.strong_mfu for p in curve], "s--", label="strong: same global batch")
    axes.set_xscale("log", base=2)
    axes.set_xticks(gpus, [f"{count:,}" for count in gpus])
    highest = max(100 * max(p.weak_mfu, p.strong_mfu) for p in curve)
    axes.set_ylim(0, max(50, 1.1 * highest))
    axes.set_xlabel("GPUs")
    axes.set_ylabel("predicted MFU, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
