"""Mask a sample's image tokens, given its (seed, flow, position) alone (docs/specification.md, section 6)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from showo_dist.config.flows import FLOWS

IGNORE = -100  # label of a token that is not supervised
_CLIP = 1e-6  # lower bound of the three schedules that the published code clips
_UNMASKED_WEIGHT = 0.3  # smallest loss weight of a visible token when all tokens are supervised

Schedule = Callable[[Tensor], Tensor]


def mask_schedule(name: str) -> Schedule:
    """Find the function from t in [0, 1] to the fraction of masked tokens.

    Args:
        name: ``cosine``, ``linear``, ``sigmoid``, or ``pow`` with its exponent, as in ``pow2``.

    Raises:
        ValueError: unknown name.
    """
    schedules: dict[str, Schedule] = {
        "cosine": _cosine,
        "linear": partial(_power, exponent=1.0),
        "sigmoid": _sigmoid,
    }
    if name in schedules:
        return schedules[name]
    try:
        return partial(_power, exponent=float(name.removeprefix("pow")))
    except ValueError:
        known = ", ".join(schedules)
        raise ValueError(
            f"mask_schedule = {name!r}: expected {known}, or pow2 and the like"
        ) from None


def _cosine(t: Tensor) -> Tensor:
    return torch.cos(t * (math.pi / 2))


def _power(t: Tensor, exponent: float) -> Tensor:
    return (1.0 - t**exponent).clamp(_CLIP, 1.0)


def _sigmoid(t: Tensor, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    low, high = torch.sigmoid(torch.tensor([start / tau, end / tau]))
    value = torch.sigmoid((t * (end - start) + start) / tau)
    return ((high - value) / (high - low)).clamp(_CLIP, 1.0)


def sample_rng(seed: int, flow: str, position: int) -> np.random.Generator:
    """Make the random generator of one sample: the same on every rank and worker, and after a resume.

    A sample's position in the stream of its flow does not depend on the number of ranks, so its mask, prompt
    and condition dropout do not either.
    """
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, FLOWS.index(flow), position]))
    )


Interval = tuple[float, float]  # lower bound and width
WHOLE: Interval = (0.0, 1.0)


def stratum(seed: int, flow: str, position: int, strata: int) -> Interval:
    """The part of the unit interval from which a sample's t is drawn, with stratified masking.

    ``strata`` positions from a multiple of it on have each of as many equal parts once. The order of the
    parts is shifted by a random number, new for each such stretch, so that the t of every single position is
    uniform: else a shard, which has the same places of every stretch, could always get the same fractions.

    Args:
        seed: of the run.
        flow: of the sample.
        position: in the stream of the flow.
        strata: number of parts: the flow's samples per optimizer step.
    """
    stretch, place = divmod(position, strata)
    part = (_shift(seed, flow, stretch, strata) + place * _stride(strata)) % strata
    return part / strata, 1.0 / strata


@lru_cache(maxsize=64)
def _shift(seed: int, flow: str, stretch: int, strata: int) -> int:
    # The spawn key keeps these numbers apart from those of the samples.
    words = np.random.SeedSequence([seed, FLOWS.index(flow), stretch], spawn_key=(1,))
    return int(np.random.Generator(np.random.Philox(words)).integers(strata))


@cache
def _stride(strata: int) -> int:
    """Distance in parts between consecutive positions, such that every micro-batch of a rank is spread too.

    Multiples of a number without common divisor are a permutation. A rank of W has every W-th position, which
    are multiples modulo strata / W; a micro-batch of consecutive ones is evenly spread if no partial quotient
    of stride / (strata / W) is large, as in the golden section. So candidates near it are tried for all W.
    """
    divisors = [d for d in range(2, strata + 1) if strata % d == 0]
    candidates = (s for s in count(round(0.618 * strata)) if math.gcd(s, strata) == 1)
    return min(
        islice(candidates, 100),
        key=lambda stride: max((_largest_quotient(stride % d, d) for d in divisors), default=0),
    )


def _largest_quotient(numerator: int, denominator: int) -> int:
    """The largest partial quotient of a fraction's continued fraction."""
    largest = 0
    while numerator:
        quotient, rest = divmod(denominator, numerator)
        largest, numerator, denominator = max(largest, quotient), rest, numerator
    return largest


@dataclass(frozen=True)
class MaskingOptions:
    """The published masking options.

    Attributes:
        schedule: t to the masked fraction.
        min_rate: lower bound of the masked fraction.
        noise_type: ``mask`` inserts the mask token, ``random_replace`` a random image code.
        predict_all: supervise visible tokens too, with a lower weight (always so for ``random_replace``).
        contiguous_prob: probability of masking one rectangle instead of scattered tokens.
        fixed_rates: sample the fraction from these instead of the schedule (``eval_mask_ratios``).
        strata: number of strata by flow (:func:`stratum`); flows that are missing have none.
    """

    schedule: Schedule
    min_rate: float = 0.0
    noise_type: str = "mask"
    predict_all: bool = False
    contiguous_prob: float = 0.0
    fixed_rates: tuple[float, ...] = ()
    strata: Mapping[str, int] = field(default_factory=dict)

    def interval(self, seed: int, flow: str, position: int) -> Interval:
        """The part of the unit interval from which the t of a sample is drawn."""
        strata = self.strata.get(flow)
        return stratum(seed, flow, position, strata) if strata else WHOLE


@dataclass(frozen=True)
class MaskedCodes:
    """The N image tokens of a sample after masking.

    Attributes:
        inputs_N: int64 image codes; ``codebook`` (one past the last code) stands for the mask token.
        labels_N: int64 codes to predict; :data:`IGNORE` where a token is not supervised.
        weights_N: float32 loss weights; None means 1.
        rate: masked fraction that was sampled.
    """

    inputs_N: Tensor
    labels_N: Tensor
    weights_N: Tensor | None
    rate: float


def mask_codes(
    codes_N: Tensor,
    codebook: int,
    options: MaskingOptions,
    rng: np.random.Generator,
    interval: Interval = WHOLE,
) -> MaskedCodes:
    """Mask a random fraction of the image codes, at least one.

    Args:
        codes_N: int64 codes in [0, codebook).
        codebook: number of codes.
        options: how to mask.
        rng: the sample's own generator (:func:`sample_rng`).
        interval: from which the schedule's t is drawn (:meth:`MaskingOptions.interval`).
    """
    # The order of draws (fraction, contiguous, places, noise) is part of a sample's identity: changing it
    # changes every loss curve.
    tokens = len(codes_N)
    rate = _sample_rate(options, rng, interval)
    count = max(1, round(tokens * rate))
    contiguous = options.contiguous_prob > 0 and rng.random() < options.contiguous_prob
    mask_N = (_rectangle if contiguous else _scattered)(tokens, count, rng)
    if options.noise_type == "random_replace":
        noise_N = torch.from_numpy(rng.integers(codebook, size=tokens))
    else:
        noise_N = torch.full_like(codes_N, codebook)
    inputs_N = torch.where(mask_N, noise_N, codes_N)
    if options.predict_all or options.noise_type == "random_replace":
        # Published: from 0.3 when hardly any token is masked to 1 when all are.
        visible_weight = 1.0 - (1.0 - rate) * (1.0 - _UNMASKED_WEIGHT)
        weights_N = torch.where(mask_N, 1.0, visible_weight)
        return MaskedCodes(inputs_N, codes_N, weights_N, rate)
    return MaskedCodes(inputs_N, torch.where(mask_N, codes_N, IGNORE), None, rate)


def _sample_rate(options: MaskingOptions, rng: np.random.Generator, interval: Interval) -> float:
    if options.fixed_rates:
        return float(options.fixed_rates[rng.integers(len(options.fixed_rates))])
    start, width = interval
    share = options.schedule(torch.tensor(start + width * float(rng.random(dtype=np.float32))))
    return max(float(share), options.min_rate)


def _scattered(tokens: int, count: int, rng: np.random.Generator) -> Tensor:
    mask_N = torch.zeros(tokens, dtype=torch.bool)
    mask_N[torch.from_numpy(rng.permutation(tokens)[:count])] = True
    return mask_N


def _rectangle(tokens: int, count: int, rng: np.random.Generator) -> Tensor:
    """Mask one rectangle of ``count`` tokens, rounded up to full columns, in the square grid of codes."""
    side = math.isqrt(tokens)
    assert side * side == tokens, "a contiguous region needs a square code grid"
    # Rows between the fewest that can hold ``count`` tokens and the most that ``count`` tokens can fill.
    height = int(rng.integers(math.ceil(count / side), min(side, count) + 1))
    width = min(math.ceil(count / height), side)
    top = int(rng.integers(side - height + 1))
    left = int(rng.integers(side - width + 1))
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask.flatten()
