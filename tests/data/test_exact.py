"""Stop anywhere and resume with other ranks and workers: every sample once per epoch, in one global order.

Cases are drawn from a fixed seed: shards of uneven sizes, one shard, fewer shards than ranks, bad samples and
damaged shards among them. Loaders are real. Every world meets every number of workers once, with real
worker processes on some of its ranks (a rank's loader knows of no other's); most cases use none, to be quick.
"""

import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from showo_data import FlowSpec, Sample, Skipped, Source, build_loader
from showo_data.shards import load_index, write_shard

WORLDS = (1, 2, 3, 4, 6, 8, 48)
EPOCHS = 3
WORKERS = (0, 1, 2, 4)
CASES_IN_PROCESS = 200
RANKS_WITH_WORKERS = 1  # of each world; processes are what takes the time
LAYOUTS = {
    "even": (6, 6, 6, 6),
    "uneven": (1, 17, 0, 5, 9),
    "one-shard": (23,),
    "three-shards": (4, 8, 3),
    "many-shards": (1,) * 50,
}

# Global position -> key and the reason why the sample is absent, if it is.
Seen = dict[int, tuple[str, str]]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Shards of every layout; each seventh text is not UTF-8; of "damaged", one shard ends too early."""
    folder, found = tmp_path_factory.mktemp("exact"), {}
    for name, sizes in LAYOUTS.items():
        urls = []
        for shard, size in enumerate(sizes):
            path = folder / f"{name}-{shard}.tar"
            texts = [b"\xff" if i % 7 == 6 else b"good" for i in range(size)]
            write_shard(path, [{"__key__": f"{shard}-{i}", "txt": t} for i, t in enumerate(texts)])
            urls.append(str(path))
        found[name] = tuple(urls)
    damaged = folder / "damaged.tar"
    assert all(sum(LAYOUTS[name]) == _samples(urls) for name, urls in found.items())
    damaged.write_bytes(Path(found["one-shard"][0]).read_bytes()[: 12 * 1024 + 700])
    found["damaged"] = (*found["three-shards"], str(damaged))
    return found


def _samples(urls: tuple[str, ...]) -> int:
    return sum(header.samples for header in load_index(urls))


@dataclass(frozen=True)
class Leg:
    """A part of a run: as many micro-steps of ``batch`` samples per rank."""

    world: int
    workers: int
    batch: int
    steps: int


def _run(
    spec: FlowSpec, leg: Leg, start: int, seen: Seen, with_workers: frozenset[int] | None = None
) -> int:
    """Let all ranks do a leg; returns the position that a checkpoint would hold.

    Only the ranks in ``with_workers`` (None: all) have worker processes.
    """
    state = {"lm": start}
    for rank in range(leg.world):
        workers = leg.workers if with_workers is None or rank in with_workers else 0
        loader = build_loader(
            [spec], rank=rank, world=leg.world, start_positions=state, num_workers=workers
        )
        batches = iter(loader)
        for _ in range(leg.steps):
            batch = next(batches)
            items: list[Sample | Skipped] = [*batch.samples["lm"], *batch.skipped]
            for item in items:
                assert item.position not in seen, "a position was served twice"
                seen[item.position] = _summary(item)
        reached = loader.positions_after(leg.steps)["lm"]
    return reached


def _summary(item: Sample | Skipped) -> tuple[str, str]:
    return (item.key, item.reason if isinstance(item, Skipped) else "")


def _check(urls: tuple[str, ...], rng: random.Random) -> None:
    """Run to the end of the last epoch in legs of random worlds and lengths."""
    spec = FlowSpec(
        flow="lm",
        kind="text",
        urls=urls,
        batch=1,
        seed=rng.randrange(1000),
        streams=rng.choice((1, 3, 8)),
        window=rng.choice((1, 5, 1000)),
    )
    source, position = Source(spec), 0
    seen: Seen = {}
    end = EPOCHS * len(source)
    while position < end:
        world = rng.choice(WORLDS)
        batch = rng.choice((1, 2, 5)) if world < 48 else 1
        steps = rng.randint(1, -(-(end - position) // (world * batch)))
        leg = Leg(world, 0, batch, steps)
        position = _run(replace(spec, batch=batch), leg, position, seen)
    assert sorted(seen) == list(range(position)), "no position is left out"
    assert [seen[p] for p in range(end)] == [_summary(source[p]) for p in range(end)]
    for epoch in range(EPOCHS):
        first = epoch * len(source)
        places = Counter(source.reader.stream.locate(p) for p in range(first, first + len(source)))  # type: ignore[attr-defined]
        assert len(places) == len(source) and {place.epoch for place in places} == {epoch}


@pytest.mark.parametrize("case", range(CASES_IN_PROCESS))
def test_any_stop_and_any_world(layouts: dict[str, tuple[str, ...]], case: int) -> None:
    rng = random.Random(case)
    _check(layouts[rng.choice(sorted(layouts))], rng)


@pytest.mark.usefixtures("time_limit")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("workers", WORKERS)
def test_every_world_with_every_number_of_workers(
    layouts: dict[str, tuple[str, ...]], world: int, workers: int
) -> None:
    """A run begins without workers, resumes with workers on this world size, and ends without on another."""
    rng = random.Random(f"{world} ranks, {workers} workers")
    urls = layouts[rng.choice(sorted(layouts))]
    batch = rng.choice((1, 2))
    spec = FlowSpec(flow="lm", kind="text", urls=urls, batch=batch, seed=rng.randrange(1000))
    source = Source(spec)
    seen: Seen = {}
    chosen = frozenset(rng.sample(range(world), RANKS_WITH_WORKERS))
    position = _run(spec, Leg(rng.choice(WORLDS[:4]), 0, batch, rng.randint(1, 3)), 0, seen)
    # More micro-steps than workers have ready at first, so that each of them is asked again.
    middle = Leg(world, workers, batch, 3 * workers + 2)
    position = _run(spec, middle, position, seen, chosen)
    position = _run(spec, Leg(rng.choice(WORLDS[:4]), 0, batch, 3), position, seen)
    assert sorted(seen) == list(range(position)), "no position is left out"
    assert [seen[p] for p in range(position)] == [_summary(source[p]) for p in range(position)]


def test_bad_samples_are_among_them(layouts: dict[str, tuple[str, ...]]) -> None:
    source = Source(FlowSpec(flow="lm", kind="text", urls=layouts["damaged"], batch=1))
    reasons = Counter(_summary(source[p])[1] for p in range(len(source)))
    assert reasons["not-utf8"] >= 1 and reasons["damaged-shard"] == 1
