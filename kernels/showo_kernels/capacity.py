"""Row capacities: a ladder of few lengths, for kernels that are compiled per length."""

from __future__ import annotations

import torch

BLOCK = 128


def capacity(tokens: int, steps: int) -> int:
    """Return the smallest capacity that holds ``tokens``.

    Args:
        tokens: of the row.
        steps: capacities per octave, multiples of 128: with 8, those from 8,192 on are 8,192, 9,216,
            10,240, …, 16,384, and at most an eighth of a row is padding. 0: every multiple of 128.
    """
    step = BLOCK
    if steps and tokens > BLOCK:
        octave = 1 << ((tokens - 1).bit_length() - 1)  # the largest power of two below tokens
        step = max(BLOCK, octave // steps // BLOCK * BLOCK)
    return -(-tokens // step) * step


def allow_capacities() -> None:
    """Let ``torch.compile`` make a version for every capacity, and fail beyond instead of falling back.

    By default, a function runs uncompiled from its ninth version on: FlexAttention then computes all T²
    scores in memory.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 256)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 1024)
    config.fail_on_recompile_limit_hit = True
