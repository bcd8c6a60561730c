"""Measure bytes and seconds of a step on slow links between two network namespaces with one rank each."""

from pathlib import Path

import torch

from showo_dist.config import load
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, StepProfile, fake_ranks
from showo_dist.sequences import TOKEN_MULTIPLE
from showo_launch.rehearsal.cluster import Cluster as Rehearsal
from showo_launch.rehearsal.network import address_of
from tests.plan.groups import free_port, measuring, rank_environment, results
from tests.plan.measure import RATES
from tests.plan.test_memory import BUCKETS, CONFIG

HOSTS = 2
# One short sample, so that on a slow link communication takes nearly all of the step.
BASE = [
    f"config={CONFIG}",
    "training.mixed_precision=fp32",
    "training.batch_size_t2i=1",
    "training.batch_size_mmu=-1",
    "training.batch_size_lm=-1",
    BUCKETS,
]
STAGES = (0, 1, 2, 3)
Measured = dict[int, dict[str | None, dict[str, float]]]


def setting(stage: int) -> list[str]:
    return [*BASE, f"distributed.zero_stage={stage}"]


def measure_links(out: Path) -> Measured:
    """(stage, rate) to bytes and seconds per step; needs what ``showo_launch.rehearsal.programs`` lists."""
    command = measuring("traffic", out, [setting(stage) for stage in STAGES])
    port, address = free_port(), address_of(0)
    with Rehearsal({f"host{number + 1}": 1 for number in range(HOSTS)}) as cluster:
        ranks = [
            cluster.start(name, command, rank_environment(rank, HOSTS, address, port))
            for rank, name in enumerate(cluster.names)
        ]
        found = results(ranks, out)
    return {
        stage: dict(zip(RATES, by_rate, strict=True))
        for stage, by_rate in zip(STAGES, found, strict=True)
    }


def profile(stage: int) -> StepProfile:
    """The planned profile of the same step."""
    config = load(setting(stage), check=False)
    with fake_ranks(0, HOSTS):
        engine = EngineOfShapes(config, torch.device("cpu"))
        return engine.step(AssumedSamples(config).micro_batch(TOKEN_MULTIPLE))
