"""Several weighted sources in one flow: exact shares, and orders that no weight can change."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_data import FlowSpec, Sample, Source, Weighted, build_loader
from showo_data.shards import write_shard
from showo_data.streams import CanonicalStream, MixedStream, part_seed

BLOCK = 1000
weights = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 10.0]), min_size=1, max_size=5)


def _mixed(weights: list[float], seed: int = 0) -> MixedStream:
    streams = [
        CanonicalStream([7, 0, 5 + i], part_seed(seed, i), streams=3, window=4)
        for i in range(len(weights))
    ]
    return MixedStream(streams, weights, seed)


@settings(max_examples=40, deadline=None)
@given(weights.filter(any), st.integers(0, 50), st.integers(1, 1500))
def test_each_stream_runs_through_its_own_positions(
    weights: list[float], block: int, length: int
) -> None:
    mixed = _mixed(weights)
    first = block * BLOCK
    dealt: dict[int, list[int]] = defaultdict(list)
    for position in range(first, first + length):
        stream, own = mixed.assign(position)
        dealt[stream].append(own)
    for stream, positions in dealt.items():
        begin = block * mixed.quotas[stream]
        assert positions == list(range(begin, begin + len(positions)))


@settings(max_examples=40, deadline=None)
@given(weights.filter(any))
def test_every_block_has_the_shares_of_the_weights(weights: list[float]) -> None:
    mixed = _mixed(weights)
    counts = Counter(mixed.assign(3 * BLOCK + i)[0] for i in range(BLOCK))
    for stream, weight in enumerate(weights):
        assert abs(counts[stream] - BLOCK * weight / sum(weights)) < 1
        assert weight > 0 or counts[stream] == 0


@settings(max_examples=20, deadline=None)
@given(weights.filter(lambda w: w[0] > 0), weights.filter(lambda w: w[0] > 0))
def test_a_weight_changes_no_order_inside_a_source(before: list[float], after: list[float]) -> None:
    """Whatever the other sources and their weights are, even where there are none."""

    def first_of_the_first_source(mixed: MixedStream) -> list[tuple[int, ...]]:
        places = (mixed.locate(p) for p in range(40 * BLOCK) if mixed.assign(p)[0] == 0)
        return [tuple(next(places)) for _ in range(30)]

    alone = CanonicalStream([7, 0, 5], 0, streams=3, window=4)
    expected = [tuple(alone.locate(p)) for p in range(30)]
    assert first_of_the_first_source(_mixed(before)) == expected
    assert first_of_the_first_source(_mixed(after)) == expected


def test_ranks_share_every_source() -> None:
    """The order is no round robin, in which each of two ranks would get a source of its own."""
    mixed = _mixed([1.0, 1.0])
    for rank in range(2):
        counts = Counter(mixed.assign(p)[0] for p in range(rank, 4 * BLOCK, 2))
        assert all(abs(count - BLOCK) < 120 for count in counts.values()), counts


def test_the_mixture_is_frozen() -> None:
    """A saved position must mean the same sample in every later version: these numbers may not change."""
    mixed = _mixed([2.0, 1.0], seed=42)
    assert [mixed.assign(p) for p in (0, 1, 2, 999, 1000, 10**9)] == FROZEN


FROZEN = [(0, 0), (0, 1), (0, 2), (1, 332), (1, 333), (0, 667000000)]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, 1e-4]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        _mixed(weights)


def _shard(folder: Path, name: str, count: int) -> str:
    path = folder / f"{name}.tar"
    samples = [{"__key__": f"{name}{i}", "txt": f"{name} {i}"} for i in range(count)]
    write_shard(path, samples)
    return str(path)


@pytest.fixture
def mixture(tmp_path: Path) -> tuple[Weighted, Weighted]:
    """17 samples with weight 3, 5 samples with weight 1."""
    large = Weighted((_shard(tmp_path, "a", 9), _shard(tmp_path, "b", 8)), 3.0)
    return large, Weighted((_shard(tmp_path, "c", 5),), 1.0)


def _texts(spec: FlowSpec, start: int, world: int, steps: int) -> dict[int, str | None]:
    seen: dict[int, str | None] = {}
    for rank in range(world):
        loader = build_loader([spec], rank=rank, world=world, start_positions={"lm": start})
        batches = iter(loader)
        for _ in range(steps):
            seen |= {sample.position: sample.text for sample in next(batches).samples["lm"]}
    return seen


def test_a_mixture_resumes_anywhere_on_any_number_of_ranks(
    mixture: tuple[Weighted, Weighted],
) -> None:
    spec = FlowSpec(flow="lm", kind="text", mixture=mixture, batch=2, window=4)
    source = Source(spec)
    expected = [source[p] for p in range(48)]
    assert all(isinstance(sample, Sample) for sample in expected)
    seen = _texts(spec, 0, world=3, steps=4) | _texts(spec, 24, world=2, steps=6)
    assert [seen[p] for p in range(48)] == [s.text for s in expected if isinstance(s, Sample)]


def test_each_source_has_its_own_epochs(mixture: tuple[Weighted, Weighted]) -> None:
    source = Source(FlowSpec(flow="lm", kind="text", mixture=mixture, batch=1, window=4))
    texts = [sample.text for p in range(400) if isinstance(sample := source[p], Sample)]
    large = [text for text in texts if text and text[0] in "ab"]
    small = [text for text in texts if text and text[0] == "c"]
    assert len(set(large[:17])) == len(set(large[17:34])) == 17
    assert all(len(set(small[i : i + 5])) == 5 for i in range(0, 50, 5))
    assert 2.5 < len(large) / len(small) < 3.5


def test_a_list_of_shards_is_one_source(tmp_path: Path) -> None:
    urls = (_shard(tmp_path, "a", 30), _shard(tmp_path, "b", 3))
    source = Source(FlowSpec(flow="lm", kind="text", urls=urls, batch=1))
    assert len({s.text for p in range(33) if isinstance(s := source[p], Sample)}) == 33


def test_a_source_without_samples_is_named(
    mixture: tuple[Weighted, Weighted], tmp_path: Path
) -> None:
    empty = Weighted((_shard(tmp_path, "empty", 0),))
    with pytest.raises(ValueError, match=r"flow 'lm': the shards .*empty\.tar.* hold no samples"):
        Source(FlowSpec(flow="lm", kind="text", mixture=(*mixture, empty), batch=1))


def test_resampling_draws_from_all_sources_by_weight(mixture: tuple[Weighted, Weighted]) -> None:
    spec = FlowSpec(
        flow="lm", kind="text", mixture=mixture, batch=2, window=4, sampling="resampled"
    )

    def draw(start: int) -> list[str | None]:
        return list(_texts(spec, start, world=1, steps=500).values())

    texts = draw(0)
    assert len(set(texts)) == 22
    share = sum(text is not None and text[0] == "c" for text in texts) / len(texts)
    assert 0.18 < share < 0.32
    assert draw(0) == texts, "the same start draws the same"
    assert draw(1000) != texts, "another start draws others"
