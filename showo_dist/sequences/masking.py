"""Which image tokens a sample hides, from (seed, flow, position) alone (docs/specification.md, section 6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from showo_dist.sequences.sequence import FLOWS

IGNORE = -100
_CLIP = 1e-6  # lower bound of the three schedules that the published code clips
_UNMASKED_WEIGHT = 0.3  # smallest loss weight of a visible token when all tokens are predicted

Schedule = Callable[[Tensor], Tensor]


def _cosine(t: Tensor) -> Tensor:
    return torch.cos(t * (math.pi / 2))


def _power(t: Tensor, exponent: float) -> Tensor:
    return (1.0 - t**exponent).clamp(_CLIP, 1.0)


def _sigmoid(t: Tensor, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    low, high = torch.sigmoid(torch.tensor([start / tau, end / tau]))
    value = torch.sigmoid((t * (end - start) + start) / tau)
    return ((high - value) / (high - low)).clamp(_CLIP, 1.0)


def mask_schedule(name: str) -> Schedule:
    """Share of masked tokens as a function of t in [0, 1].

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


def sample_rng(seed: int, flow: str, position: int) -> np.random.Generator:
    """Random numbers that belong to one sample, whichever rank, worker or step reads it."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, FLOWS.index(flow), position]))
    )


@dataclass(frozen=True)
class MaskingOptions:
    """The published masking options.

    Attributes:
        schedule: t to masked share.
        min_rate: lower bound of the share.
        noise_type: ``mask`` puts the mask token, ``random_replace`` a random image code.
        predict_all: supervise visible tokens too, at a lower weight (always so for ``random_replace``).
        contiguous_prob: probability of hiding one rectangle instead of scattered places.
        fixed_rates: draw the share from these instead of the schedule (``eval_mask_ratios``).
    """

    schedule: Schedule
    min_rate: float = 0.0
    noise_type: str = "mask"
    predict_all: bool = False
    contiguous_prob: float = 0.0
    fixed_rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class MaskedCodes:
    """Image tokens as the model sees them; all tensors have N entries.

    Attributes:
        inputs_N: image codes, ``codebook`` (the code just past the last) where masked.
        labels_N: codes to predict, :data:`IGNORE` elsewhere.
        weights_N: float32 loss weights, or None for 1.
        rate: masked share that was drawn.
    """

    inputs_N: Tensor
    labels_N: Tensor
    weights_N: Tensor | None
    rate: float


def _draw_rate(options: MaskingOptions, rng: np.random.Generator) -> float:
    if options.fixed_rates:
        return float(options.fixed_rates[rng.integers(len(options.fixed_rates))])
    share = options.schedule(torch.tensor(rng.random(dtype=np.float32)))
    return max(float(share), options.min_rate)


def _scattered(tokens: int, count: int, rng: np.random.Generator) -> Tensor:
    mask_N = torch.zeros(tokens, dtype=torch.bool)
    mask_N[torch.from_numpy(rng.permutation(tokens)[:count])] = True
    return mask_N


def _rectangle(tokens: int, count: int, rng: np.random.Generator) -> Tensor:
    """One rectangle of about ``count`` places in the square grid of codes."""
    side = math.isqrt(tokens)
    assert side * side == tokens, "a contiguous region needs a square code grid"
    height = int(rng.integers(math.ceil(count / side), min(side, count) + 1))
    width = min(math.ceil(count / height), side)
    top = int(rng.integers(side - height + 1))
    left = int(rng.integers(side - width + 1))
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask.flatten()


def mask_codes(
    codes_N: Tensor, codebook: int, options: MaskingOptions, rng: np.random.Generator
) -> MaskedCodes:
    """Hide a random share of the image codes.

    Args:
        codes_N: int64 codes in [0, codebook).
        codebook: number of codes.
        options: how to hide them.
        rng: the sample's own generator (:func:`sample_rng`).
    """
    tokens = len(codes_N)
    rate = _draw_rate(options, rng)
    count = max(1, round(tokens * rate))
    contiguous = options.contiguous_prob > 0 and rng.random() < options.contiguous_prob
    mask_N = (_rectangle if contiguous else _scattered)(tokens, count, rng)
    if options.noise_type == "random_replace":
        noise_N = torch.from_numpy(rng.integers(codebook, size=tokens))
    else:
        noise_N = torch.full_like(codes_N, codebook)
    inputs_N = torch.where(mask_N, noise_N, codes_N)
    if options.predict_all or options.noise_type == "random_replace":
        visible_weight = 1.0 - (1.0 - rate) * (1.0 - _UNMASKED_WEIGHT)
        weights_N = torch.where(mask_N, 1.0, visible_weight)
        return MaskedCodes(inputs_N, codes_N, weights_N, rate)
    return MaskedCodes(inputs_N, torch.where(mask_N, codes_N, IGNORE), None, rate)
