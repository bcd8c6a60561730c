"""Positions name samples by arithmetic: each exactly once per epoch, whoever asks."""

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showo_data.streams import CanonicalStream

streams = st.builds(
    CanonicalStream,
    st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 2**63),
    streams=st.integers(1, 60),
    window=st.integers(1, 60),
)


@given(streams, st.integers(0, 10**6))
def test_every_sample_exactly_once_per_epoch(stream: CanonicalStream, epoch: int) -> None:
    first = epoch * stream.samples
    places = [stream.locate(p) for p in range(first, first + stream.samples)]
    assert {place.epoch for place in places} == {epoch}
    everything = {
        (shard, sample) for shard, count in enumerate(stream.counts_S) for sample in range(count)
    }
    assert len(places) == len(everything)
    assert {(place.shard, place.sample) for place in places} == everything


@given(streams, st.lists(st.integers(0, 10**12), min_size=1, max_size=5))
def test_a_position_needs_no_history(stream: CanonicalStream, positions: list[int]) -> None:
    fresh = pickle.loads(pickle.dumps(stream))
    later = [fresh.locate(p) for p in reversed(positions)][::-1]
    assert [stream.locate(p) for p in positions] == later


@given(streams, st.integers(1, 9))
def test_ranks_share_the_positions(stream: CanonicalStream, world: int) -> None:
    epoch = range(3 * stream.samples)
    alone = [stream.locate(p) for p in epoch]
    together = [stream.locate(p) for r in range(world) for p in epoch[r::world]]
    assert sorted(alone) == sorted(together)


def test_shuffling_stays_inside_the_window() -> None:
    stream = CanonicalStream([1000], seed=5, streams=4, window=50)
    moved = 0
    for p in range(1000):
        entry, number = divmod(p, 4)
        place = stream.locate(p).sample - 250 * number
        assert place // 50 == entry // 50
        moved += place != entry
    assert moved > 900


def test_neighbours_come_from_different_places() -> None:
    stream = CanonicalStream([100] * 8, seed=1, streams=8, window=10)
    assert len({stream.locate(p).shard for p in range(8)}) == 8


def test_seed_and_epoch_change_the_order() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        stream = CanonicalStream([30, 20, 50], seed, streams=2, window=25)
        return [stream.locate(p)[1:] for p in range(100 * epoch, 100 * epoch + 100)]

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert {tuple(sorted(o)) for o in orders} == {tuple(sorted(orders[0]))}


def test_the_order_is_frozen() -> None:
    """A saved position must mean the same sample in every later version: these numbers may not change."""
    stream = CanonicalStream([5, 0, 4, 3], seed=42, streams=3, window=3)
    assert [tuple(stream.locate(p)) for p in (0, 1, 2, 3, 10, 11, 12, 23, 10**9)] == FROZEN


FROZEN = [
    (0, 2, 2),
    (0, 0, 0),
    (0, 3, 0),
    (0, 2, 0),
    (0, 0, 3),
    (0, 3, 2),
    (1, 0, 2),
    (1, 3, 2),
    (83333333, 2, 0),
]


@pytest.mark.parametrize(
    ("counts", "options"), [([0, 0], {}), ([], {}), ([3], {"streams": 0}), ([3], {"window": 0})]
)
def test_impossible_streams_are_refused(counts: list[int], options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"no samples|at least 1"):
        CanonicalStream(counts, seed=0, **options)


def test_orders_of_windows_take_little_memory() -> None:
    """Only the last window of each stream is kept, at 4 bytes per entry."""
    stream = CanonicalStream([400_000], seed=3, streams=4, window=20_000)
    tracemalloc.start()
    for p in range(0, 1_200_000, 5000):
        for number in range(4):
            stream.locate(p + number)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1e6
