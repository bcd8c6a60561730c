"""Masking: number and choice of tokens, replacement, loss weights, and the sample's own random numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_dist.sequences.masking import (
    IGNORE,
    MaskingOptions,
    mask_codes,
    mask_schedule,
    sample_rng,
    stratum,
)

CODEBOOK = 32
COSINE = MaskingOptions(schedule=mask_schedule("cosine"))


def codes(tokens: int) -> torch.Tensor:
    return torch.arange(tokens) % CODEBOOK


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(0, 10**12),
    st.sampled_from(["cosine", "linear", "pow3", "sigmoid"]),
)
def test_the_masked_places_and_nothing_else_change(tokens: int, position: int, name: str) -> None:
    options = MaskingOptions(schedule=mask_schedule(name))
    masked = mask_codes(codes(tokens), CODEBOOK, options, sample_rng(1, "t2i", position))
    hidden = masked.inputs_N == CODEBOOK
    assert int(hidden.sum()) == max(1, round(tokens * masked.rate))
    assert torch.equal(masked.inputs_N[~hidden], codes(tokens)[~hidden])
    assert torch.equal(masked.labels_N[hidden], codes(tokens)[hidden])
    assert (masked.labels_N[~hidden] == IGNORE).all() and masked.weights_N is None


def test_a_samples_noise_belongs_to_the_sample() -> None:
    def draw(seed: int, flow: str, position: int) -> list[int]:
        masked = mask_codes(codes(64), CODEBOOK, COSINE, sample_rng(seed, flow, position))
        return masked.inputs_N.tolist()

    assert draw(1, "t2i", 5) == draw(1, "t2i", 5)
    others = [draw(2, "t2i", 5), draw(1, "recon", 5), draw(1, "t2i", 6)]
    assert all(other != draw(1, "t2i", 5) for other in others)


def test_rates_follow_the_schedule() -> None:
    """cos(πu/2) of a uniform u has mean 2/π and median cos(π/4)."""
    rates = [
        mask_codes(codes(4), CODEBOOK, COSINE, sample_rng(0, "t2i", p)).rate for p in range(4000)
    ]
    assert np.mean(rates) == pytest.approx(2 / math.pi, abs=0.015)
    assert np.median(rates) == pytest.approx(math.cos(math.pi / 4), abs=0.02)


def test_every_place_is_masked_equally_often() -> None:
    options = replace(COSINE, fixed_rates=(0.25,))
    counts = torch.zeros(16)
    for position in range(3000):
        masked = mask_codes(codes(16), CODEBOOK, options, sample_rng(0, "t2i", position))
        counts += masked.inputs_N == CODEBOOK
    assert counts.sum() == 3000 * 4
    assert ((counts / 3000 - 0.25).abs() < 0.04).all()


def test_rates_can_be_bounded_or_fixed() -> None:
    rng = sample_rng(0, "t2i", 0)
    bounded = [
        mask_codes(codes(64), CODEBOOK, replace(COSINE, min_rate=0.6), rng).rate for _ in range(50)
    ]
    assert min(bounded) == 0.6
    fixed = [
        mask_codes(codes(64), CODEBOOK, replace(COSINE, fixed_rates=(0.1, 0.9)), rng).rate
        for _ in range(50)
    ]
    assert set(fixed) == {0.1, 0.9}


def test_random_replacement_supervises_all_and_weighs_the_visible_less() -> None:
    options = replace(COSINE, noise_type="random_replace", fixed_rates=(0.5,))
    masked = mask_codes(torch.full((400,), 3), CODEBOOK, options, sample_rng(0, "t2i", 0))
    assert int(masked.inputs_N.max()) < CODEBOOK and int(masked.inputs_N.min()) >= 0
    assert torch.equal(masked.labels_N, torch.full((400,), 3))
    assert masked.weights_N is not None
    # Published: 1 where replaced, 1 - (1 - rate)·0.7 elsewhere.
    assert sorted(set(masked.weights_N.tolist())) == pytest.approx([0.65, 1.0])
    assert int((masked.weights_N == 1).sum()) == 200
    assert 150 < int((masked.inputs_N != 3).sum()) <= 200


def test_predict_all_keeps_the_mask_token() -> None:
    options = replace(COSINE, predict_all=True, fixed_rates=(0.5,))
    masked = mask_codes(codes(64), CODEBOOK, options, sample_rng(0, "t2i", 0))
    assert int((masked.inputs_N == CODEBOOK).sum()) == 32
    assert torch.equal(masked.labels_N, codes(64))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.floats(0.01, 1.0), st.integers(0, 10**6))
def test_a_contiguous_region_is_one_rectangle_of_about_the_count(
    side: int, rate: float, position: int
) -> None:
    options = replace(COSINE, contiguous_prob=1.0, fixed_rates=(rate,))
    masked = mask_codes(codes(side * side), CODEBOOK, options, sample_rng(0, "t2i", position))
    grid = (masked.inputs_N == CODEBOOK).view(side, side)
    rows, columns = grid.any(1), grid.any(0)
    assert int(grid.sum()) == int(rows.sum()) * int(columns.sum())
    for line in (rows, columns):
        assert int(line.int().diff().abs().sum()) <= 2  # one stretch
    count = max(1, round(side * side * rate))
    assert count <= int(grid.sum()) < count + side


def test_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match=r"'cosin'.*cosine"):
        mask_schedule("cosin")


def _part(seed: int, flow: str, position: int, strata: int) -> int:
    start, width = stratum(seed, flow, position, strata)
    assert width == 1 / strata
    return round(start * strata)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 10**7), st.integers(0, 5))
def test_a_global_batch_has_every_stratum_once(strata: int, batch: int, seed: int) -> None:
    positions = range(batch * strata, (batch + 1) * strata)
    parts = [_part(seed, "recon", position, strata) for position in positions]
    assert sorted(parts) == list(range(strata))


def test_strata_differ_between_seeds_flows_and_batches() -> None:
    parts = {_part(*where, 1000) for where in [(0, "t2i", 0), (1, "t2i", 0), (0, "recon", 0)]}
    assert len(parts | {_part(0, "t2i", 1000, 1000)}) == 4


@pytest.mark.parametrize("place", [0, 1, 5])
@pytest.mark.parametrize("strata", [1, 6])
def test_a_single_sample_keeps_the_published_distribution(strata: int, place: int) -> None:
    """One place of a batch over many batches, by the Kolmogorov-Smirnov distance at 0.1 %."""
    options, batches = replace(COSINE, strata={"t2i": strata}), 3000
    rates = []
    for position in range(place, place + batches * strata, strata):
        interval = options.interval(7, "t2i", position)
        rng = sample_rng(7, "t2i", position)
        rates.append(mask_codes(codes(4), CODEBOOK, options, rng, interval).rate)
    uniform = np.sort(np.arccos(np.array(rates)) * 2 / math.pi)
    distance = np.abs(uniform - (np.arange(batches) + 0.5) / batches).max()
    assert distance < 1.95 / math.sqrt(batches)


@pytest.mark.parametrize(
    ("ranks", "accumulation", "batch"),
    [(2, 1, 18), (8, 4, 10), (1, 8, 6), (48, 2, 10), (3, 5, 7), (16, 16, 4), (4, 1, 8)],
)
def test_every_micro_batch_of_a_rank_is_spread(ranks: int, accumulation: int, batch: int) -> None:
    """The largest gap between two of its fractions is at most three times the mean gap."""
    strata, micro = ranks * accumulation * batch, ranks * batch
    for rank in range(ranks):
        for start in range(0, strata, micro):
            positions = range(start + rank, start + micro, ranks)
            parts = sorted(_part(0, "t2i", position, strata) for position in positions)
            gaps = np.diff([*parts, parts[0] + strata])
            assert gaps.max() <= 3 * ranks * accumulation
            assert accumulation > 1 or set(gaps) == {ranks}


def test_without_strata_nothing_changes() -> None:
    """The same masks as with strata of one."""
    one = replace(COSINE, strata={"t2i": 1})
    for position in range(50):
        masks = [
            mask_codes(
                codes(64),
                CODEBOOK,
                options,
                sample_rng(3, "t2i", position),
                options.interval(3, "t2i", position),
            ).inputs_N
            for options in (COSINE, one)
        ]
        assert torch.equal(*masks)
