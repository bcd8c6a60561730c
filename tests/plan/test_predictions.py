"""Time, advice and mistakes on the command line, with made-up profiles."""

from dataclasses import replace

import pytest

from showo_dist.plan.cli import main
from showo_dist.plan.engine_step import StepProfile
from showo_dist.plan.report import advice, fits
from showo_dist.plan.shapes import PARTS, Collective
from showo_dist.plan.study import Prediction, Setting
from showo_dist.plan.timing import (
    GPUS,
    Cluster,
    Compute,
    StepTime,
    gpu,
    on_the_wire,
    sent_bytes,
    step_bytes,
    step_time,
)

GRADIENTS = Collective("all_reduce", 1_000_000, 8, "backward")
WEIGHTS = Collective("all_gather", 1_000_000, 8, "step")
H200 = GPUS["h200"]


@pytest.mark.parametrize("ranks", [1, 2, 8, 48, 1024])
def test_rings(ranks: int) -> None:
    share = (ranks - 1) / ranks
    assert sent_bytes(WEIGHTS, ranks, "nccl") == pytest.approx(1e6 * share)
    assert sent_bytes(GRADIENTS, ranks, "nccl") == pytest.approx(2e6 * share)
    both = step_bytes([GRADIENTS, WEIGHTS], ranks, "gloo")
    assert both == pytest.approx(3e6 * share)
    scattered = replace(WEIGHTS, kind="reduce_scatter")
    assert sent_bytes(scattered, ranks, "gloo") == 2 * sent_bytes(scattered, ranks, "nccl")


def cluster(**changes: float) -> Cluster:
    base = Cluster(6, 8, "nccl", rank_rate=1e9, host_rate=1e8, latency_s=0.0, overlaps=True)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_ring_is_as_slow_as_its_slowest_link() -> None:
    assert cluster().seconds(WEIGHTS) == pytest.approx(1e6 * 47 / 48 / 1e8)
    assert cluster(hosts=1).seconds(WEIGHTS) == pytest.approx(1e6 * 7 / 8 / 1e9)
    assert cluster(hosts=1, per_host=1).seconds(WEIGHTS) == 0


def test_all_ranks_of_a_host_share_its_link_in_an_all_to_all() -> None:
    exchange = replace(WEIGHTS, kind="all_to_all")
    outside = 1e6 * 40 / 48  # of what a rank sends, to the five other hosts
    assert cluster().seconds(exchange) == pytest.approx(8 * outside / 1e8)
    assert cluster(hosts=1).seconds(exchange) == pytest.approx(1e6 * 7 / 8 / 1e9)


def test_frames_count_on_a_slow_wire_under_gloo() -> None:
    plain = cluster(overlaps=False)
    gloo = replace(plain, backend="gloo")
    assert gloo.seconds(WEIGHTS) == pytest.approx(on_the_wire(plain.seconds(WEIGHTS)))


def test_gradients_hide_behind_the_backward_pass_and_the_update_waits() -> None:
    sends = [cluster().seconds(call) for call in (GRADIENTS, WEIGHTS)]
    long = Compute(1.0, 2.0, 0.0, 0.1, 1e12)
    assert step_time(long, [GRADIENTS, WEIGHTS], cluster()).exposed_s == pytest.approx(sends[1])
    short = replace(long, backward_s=sends[0] / 4)
    exposed = step_time(short, [GRADIENTS, WEIGHTS], cluster()).exposed_s
    assert exposed == pytest.approx(0.75 * sends[0] + sends[1])
    alone = step_time(long, [GRADIENTS, WEIGHTS], cluster(overlaps=False))
    assert alone.exposed_s == pytest.approx(sum(sends)) == alone.communication_s


def prediction(
    stage: int = 2, peak: float = 50e9, exposed_s: float = 0.0, encoders_s: float = 0.0
) -> Prediction:
    compute = Compute(1.0, 2.0, encoders_s, 0.0, 1e15)
    busy = 3.0 + encoders_s
    profile = StepProfile(dict.fromkeys(PARTS, 0), int(peak), dict.fromkeys(PARTS, 0), [])
    time = StepTime(busy, exposed_s, exposed_s)
    return Prediction(Setting(stage, False, 1), profile, compute, time, 0.0, 1000, 0.3)


def test_advice_names_what_limits() -> None:
    assert "by compute" in advice(prediction(), [prediction()], H200)[0]
    slow = prediction(exposed_s=5.0)
    assert "by the network" in advice(slow, [slow], H200)[0]
    images = prediction(encoders_s=5.0)
    assert "showo-dist encode" in advice(images, [images], H200)[0]


def test_advice_names_a_setting_that_fits() -> None:
    large, sharded = prediction(stage=0, peak=200e9), prediction(stage=3, exposed_s=0.5)
    assert not fits(large, H200)
    (line,) = advice(large, [large, sharded], H200)
    assert "distributed.zero_stage=3" in line
    (line,) = advice(large, [large], H200)
    assert "lower training.batch_size_*" in line


def test_days() -> None:
    assert prediction(exposed_s=1.0).days(86400) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts", "0"], "--hosts 0: 1 or more"),
        (["--link-gbit", "0"], "--link-gbit 0.0: more than 0"),
        (["--gpu", "h2oo"], "--gpu h2oo: allowed are h200"),
        (["distributed.offload_optimizer=cpu"], "distributed.offload_optimizer = cpu"),
        (["distributed.zero_stege=2"], "distributed.zero_stege"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["training.batch_size_t2i=1", *arguments])


def test_every_row_of_the_table_has_a_source() -> None:
    assert all(row.source for row in GPUS.values())
    assert gpu("a100").memory == 80e9
