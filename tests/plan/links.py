"""Measure bytes and seconds of a step on slow links between two network namespaces with one rank each."""

from pathlib import Path
from typing import Any

import torch

from showo_dist.config import load
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, StepProfile, fake_ranks
from showo_dist.sequences import TOKEN_MULTIPLE
from showo_launch.rehearsal.cluster import Cluster as Rehearsal
from showo_launch.rehearsal.network import address_of
from tests.forks import free_port
from tests.plan.groups import measuring, rank_environment, results
from tests.plan.measure import RATES
from tests.plan.test_memory import BUCKETS, CONFIG

HOSTS = 2
# One short sample, so that on a slow link communication takes nearly all of the step.
BASE = [
    f"config={CONFIG}",
    "optimizer.name=adamw",
    "training.batch_size_t2i=1",
    "training.batch_size_mmu=-1",
    "training.batch_size_lm=-1",
    BUCKETS,
]
STAGES = (0, 1, 2, 3)
Measured = dict[int, dict[str | None, dict[str, float]]]


# Stage and format in which a bf16 run reduces its gradients.
FORMATS = [(stage, dtype) for stage in STAGES for dtype in ("fp32", "bf16")]


def setting(stage: int, dtype: str | None = None) -> list[str]:
    """A run in fp32, or in bf16 that reduces its gradients in ``dtype``."""
    keys = ["training.mixed_precision=fp32"]
    if dtype:
        keys = ["training.mixed_precision=bf16", f"distributed.gradient_reduction_dtype={dtype}"]
    return [*BASE, *keys, f"distributed.zero_stage={stage}"]


def measure_links(out: Path) -> Measured:
    """(stage, rate) to bytes and seconds per step; needs what ``showo_launch.rehearsal.programs`` lists."""
    found = _on_two_hosts("traffic", [setting(stage) for stage in STAGES], out)
    return {
        stage: dict(zip(RATES, by_rate, strict=True))
        for stage, by_rate in zip(STAGES, found, strict=True)
    }


def measure_formats(out: Path) -> dict[tuple[int, str], float]:
    """Bytes per step of bf16 runs on unlimited links."""
    found = _on_two_hosts("bytes", [setting(*which) for which in FORMATS], out)
    return {which: rows[0]["bytes"] for which, rows in zip(FORMATS, found, strict=True)}


def _on_two_hosts(quantity: str, cases: list[list[str]], out: Path) -> list[Any]:
    command = measuring(quantity, out, cases)
    port, address = free_port(), address_of(0)
    with Rehearsal({f"host{number + 1}": 1 for number in range(HOSTS)}) as cluster:
        ranks = [
            cluster.start(name, command, rank_environment(rank, HOSTS, address, port))
            for rank, name in enumerate(cluster.names)
        ]
        return results(ranks, out)


def profile(stage: int, dtype: str | None = None) -> StepProfile:
    """The planned profile of the same step."""
    config = load(setting(stage, dtype), check=False)
    with fake_ranks(0, HOSTS):
        engine = EngineOfShapes(config, torch.device("cpu"))
        return engine.step(AssumedSamples(config).micro_batch(TOKEN_MULTIPLE))
