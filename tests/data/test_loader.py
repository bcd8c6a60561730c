"""The order of a run depends on positions only: not on ranks, workers, or where it was interrupted."""

import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from showo_data import (
    FlowSpec,
    Loader,
    MicroBatch,
    Sample,
    Skipped,
    Source,
    build_loader,
    vq_transform,
)
from showo_data.shards import write_shard

pytestmark = pytest.mark.usefixtures("time_limit")

# flow -> position -> key
Order = dict[str, dict[int, str]]


@pytest.fixture
def specs(mini: Path, tmp_path: Path) -> list[FlowSpec]:
    """Three flows of different lengths; every fifth text of "lm" is broken."""
    broken = tmp_path / "broken.tar"
    texts = [b"\xff" if i % 5 == 0 else b"good" for i in range(37)]
    write_shard(broken, [{"__key__": f"t{i}", "txt": text} for i, text in enumerate(texts)])
    images = (f"{mini}/train-{{000000..000002}}.tar",)
    transform = vq_transform(32)
    common: dict[str, Any] = {"streams": 3, "window": 7}
    return [
        FlowSpec(flow="t2i", kind="caption", urls=images, batch=6, transform=transform, **common),
        FlowSpec(
            flow="mmu",
            kind="conversation",
            urls=images,
            batch=12,
            seed=1,
            transform=transform,
            **common,
        ),
        FlowSpec(flow="lm", kind="text", urls=(str(broken),), batch=6, **common),
    ]


def _shared(specs: list[FlowSpec], world: int) -> list[FlowSpec]:
    """The same global batch on ``world`` ranks."""
    return [replace(spec, batch=spec.batch // world) for spec in specs]


def _take(loader: Loader, steps: int) -> list[MicroBatch]:
    batches = iter(loader)
    return [next(batches) for _ in range(steps)]


def _record(order: Order, batch: MicroBatch) -> None:
    for flow, samples in batch.samples.items():
        skipped = [bad for bad in batch.skipped if bad.flow == flow]
        items: list[Sample | Skipped] = [*samples, *skipped]
        for item in items:
            assert item.position not in order[flow], "a position was served twice"
            order[flow][item.position] = item.key + ("!" if isinstance(item, Skipped) else "")


def _run(
    specs: list[FlowSpec],
    world: int,
    workers: int,
    steps: int,
    start: dict[str, int] | None = None,
    order: Order | None = None,
) -> tuple[Order, dict[str, int]]:
    """Let all ranks of ``world`` do ``steps`` micro-steps; returns what was seen and the new state."""
    order = defaultdict(dict) if order is None else order
    states = []
    for rank in range(world):
        loader = build_loader(
            _shared(specs, world),
            rank=rank,
            world=world,
            start_positions=start,
            num_workers=workers,
        )
        for batch in _take(loader, steps):
            _record(order, batch)
        states.append(loader.positions_after(steps))
    assert all(state == states[0] for state in states)
    return order, states[0]


def _expected(specs: list[FlowSpec], state: dict[str, int]) -> Order:
    """The same from the sources directly, one position after the other."""
    order: Order = {}
    for spec in specs:
        source = Source(spec)
        items = [source[p] for p in range(state[spec.flow])]
        order[spec.flow] = {
            i.position: i.key + ("!" if isinstance(i, Skipped) else "") for i in items
        }
    return order


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_world_sees_the_same_order(specs: list[FlowSpec], world: int, workers: int) -> None:
    order, state = _run(specs, world, workers, steps=5)
    assert state == {"t2i": 30, "mmu": 60, "lm": 30}
    assert order == _expected(specs, state)
    assert any(key.endswith("!") for key in order["lm"].values())


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_keep_the_order_inside_a_rank(specs: list[FlowSpec], workers: int) -> None:
    def sequence(workers: int) -> list[list[tuple[str, int]]]:
        loader = build_loader(specs, rank=1, world=4, num_workers=workers)
        return [
            [(flow, s.position) for flow, samples in batch.samples.items() for s in samples]
            for batch in _take(loader, 6)
        ]

    assert sequence(workers) == sequence(0)


@pytest.mark.parametrize(
    ("first", "second"), [((2, 2), (3, 0)), ((3, 0), (1, 2)), ((1, 0), (6, 0))]
)
def test_resuming_elsewhere_repeats_and_loses_nothing(
    specs: list[FlowSpec], first: tuple[int, int], second: tuple[int, int]
) -> None:
    order, state = _run(specs, *first, steps=4)
    order, state = _run(specs, *second, steps=7, start=state, order=order)
    assert order == _expected(specs, state)
    assert state["mmu"] > 2 * 50, "the test must reach another epoch"


def test_one_epoch_serves_every_sample_once(specs: list[FlowSpec]) -> None:
    order, _ = _run(specs, world=2, workers=0, steps=13)
    for spec in specs:
        epoch = len(Source(spec))
        assert len({order[spec.flow][p] for p in range(epoch)}) == epoch


def test_prefetched_batches_do_not_count(specs: list[FlowSpec]) -> None:
    loader = build_loader(specs, num_workers=2, prefetch=4)
    _take(loader, 1)
    assert loader.positions_after(1) == {"t2i": 6, "mmu": 12, "lm": 6}


def test_a_flow_of_bad_samples_only_is_empty_not_absent(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [{"__key__": "a", "txt": b"\xff"}])
    spec = FlowSpec(flow="lm", kind="text", urls=(str(tmp_path / "a.tar"),), batch=3)
    (batch,) = _take(build_loader([spec]), 1)
    assert batch.samples == {"lm": []}
    assert [bad.reason for bad in batch.skipped] == ["not-utf8"] * 3


def test_tensors_arrive_whole_from_workers(specs: list[FlowSpec]) -> None:
    (direct,) = _take(build_loader(specs), 1)
    (carried,) = _take(build_loader(specs, num_workers=1), 1)
    for mine, theirs in zip(direct.samples["t2i"], carried.samples["t2i"], strict=True):
        assert mine.image_3HW is not None and theirs.image_3HW is not None
        assert torch.equal(mine.image_3HW, theirs.image_3HW)
        assert mine.text == theirs.text


def test_spawned_workers_do_the_same(specs: list[FlowSpec]) -> None:
    loader = build_loader(specs, num_workers=1, multiprocessing_context="spawn")
    (batch,) = _take(loader, 1)
    assert [s.position for s in batch.samples["mmu"]] == list(range(12))


def test_two_flows_of_one_name_are_refused(specs: list[FlowSpec]) -> None:
    with pytest.raises(ValueError, match="different names"):
        build_loader([specs[0], specs[0]])


def test_a_process_with_workers_ends(mini: Path) -> None:
    """Workers outlive the SIGTERM that multiprocessing ends them with, and must not be waited for."""
    program = f"""
from showo_data import FlowSpec, build_loader
spec = FlowSpec(flow="lm", kind="text", urls=("{mini}/train-000000.tar",), batch=1)
batches = iter(build_loader([spec], num_workers=2))
print(len(next(batches).samples["lm"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1\n" and "Traceback" not in done.stderr


def test_a_worker_ends_with_its_rank_whatever_it_waits_for(mini: Path) -> None:
    """It has forked with what its rank holds open on a GPU, so that the memory would not be free."""
    program = f"""
import os, signal, time
from showo_data import FlowSpec, build_loader
spec = FlowSpec(flow="lm", kind="text", urls=("{mini}/train-000000.tar",), batch=1)
loader = build_loader([spec], num_workers=1)
batches = iter(loader)
next(batches)
(worker,) = loader._workers
os.kill(worker.pid, signal.SIGSTOP)
print(worker.pid, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        worker = int(rank.stdout.readline())
        try:
            _await_state(worker, "T")
        finally:
            rank.kill()
    _await_state(worker, "XZ")


def _await_state(process: int, states: str) -> None:
    until = time.monotonic() + 20
    while _state(process) not in states:
        assert time.monotonic() < until
        time.sleep(0.05)


def _state(process: int) -> str:
    """As Linux abbreviates it: R, S, T (stopped), Z (ended, not yet waited for), X (gone)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"
