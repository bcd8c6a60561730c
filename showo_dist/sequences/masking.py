"""Mask a sample's image tokens, given its (seed, flow, position) alone (docs/specification.md, section 6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    """

    schedule: Schedule
    min_rate: float = 0.0
    noise_type: str = "mask"
    predict_all: bool = False
    contiguous_prob: float = 0.0
    fixed_rates: tuple[float, ...] = ()


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
    codes_N: Tensor, codebook: int, options: MaskingOptions, rng: np.random.Generator
) -> MaskedCodes:
    """Mask a random fraction of the image codes, at least one.

    Args:
        codes_N: int64 codes in [0, codebook).
        codebook: number of codes.
        options: how to mask.
        rng: the sample's own generator (:func:`sample_rng`).
    """
    # The order of draws (fraction, contiguous, places, noise) is part of a sample's identity: changing it
    # changes every loss curve.
    tokens = len(codes_N)
    rate = _sample_rate(options, rng)
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


def _sample_rate(options: MaskingOptions, rng: np.random.Generator) -> float:
    if options.fixed_rates:
        return float(options.fixed_rates[rng.integers(len(options.fixed_rates))])
    share = options.schedule(torch.tensor(rng.random(dtype=np.float32)))
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
