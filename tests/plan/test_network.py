"""Predicted bytes and seconds against two hosts of network namespaces, one rank on each."""

from collections.abc import Iterator

import pytest
import torch

from showo_dist.config import load
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, StepProfile, fake_ranks
from showo_dist.plan.timing import Cluster, Compute, step_time
from showo_dist.plan.traffic import on_the_wire, step_bytes
from showo_dist.rehearsal.cluster import Cluster as Rehearsal
from showo_dist.rehearsal.network import address_of
from showo_dist.rehearsal.programs import what_is_missing
from tests.plan.groups import free_port, measuring, rank_environment, results
from tests.plan.measure import RATES, TOKEN_MULTIPLE
from tests.plan.test_memory import BUCKETS, CONFIG

pytestmark = pytest.mark.cluster

HOSTS = 2
# One short sample: on a slow link the step is what it sends.
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


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """(stage, rate) to bytes and seconds per step."""
    reason = what_is_missing()
    if reason:
        pytest.skip(reason)
    out = tmp_path_factory.mktemp("traffic") / "traffic.json"
    command = measuring("traffic", out, [setting(stage) for stage in STAGES])
    port, address = free_port(), address_of(0)
    with Rehearsal({f"host{number + 1}": 1 for number in range(HOSTS)}) as cluster:
        ranks = [
            cluster.start(name, command, rank_environment(rank, HOSTS, address, port))
            for rank, name in enumerate(cluster.names)
        ]
        found = results(ranks, out)
    yield {
        stage: dict(zip(RATES, by_rate, strict=True))
        for stage, by_rate in zip(STAGES, found, strict=True)
    }


def profile(stage: int) -> StepProfile:
    config = load(setting(stage), check=False)
    with fake_ranks(0, HOSTS):
        engine = EngineOfShapes(config, torch.device("cpu"))
        return engine.step(AssumedSamples(config).micro_batch(TOKEN_MULTIPLE))


@pytest.mark.parametrize("stage", STAGES)
def test_bytes_are_within_five_percent(stage: int, measured: Measured) -> None:
    """Packets of up to 64 KB leave an unlimited interface; a limited one cuts them into frames."""
    payload = step_bytes(profile(stage).collectives, HOSTS, "gloo")
    for rate, found in measured[stage].items():
        predicted = on_the_wire(payload) if rate else payload
        print(f"ZeRO-{stage} {rate}: predicted {predicted:,.0f}, counted {found['bytes']:,.0f}")
        assert predicted == pytest.approx(found["bytes"], rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_seconds_are_within_twenty_percent(stage: int, measured: Measured) -> None:
    """Compute is what a step takes where the link is as fast as the machine."""
    busy = measured[stage][None]["seconds"]
    calls = profile(stage).collectives
    for rate in RATES[1:]:
        assert rate is not None
        bytes_per_s = float(rate.removesuffix("mbit")) * 1e6 / 8
        cluster = Cluster(HOSTS, 1, "gloo", float("inf"), bytes_per_s, 0.0, overlaps=False)
        predicted = step_time(Compute(busy, 0.0, 0.0, 0.0, 0.0), calls, cluster).total_s
        seconds = measured[stage][rate]["seconds"]
        print(f"ZeRO-{stage} {rate}: predicted {predicted:.2f} s, took {seconds:.2f} s")
        assert predicted == pytest.approx(seconds, rel=0.2)
