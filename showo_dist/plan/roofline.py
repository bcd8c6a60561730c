"""Seconds of operations from figures of the hardware: a roofline with a floor per kernel."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import log

import torch

from showo_dist.plan.costs import Cost
from showo_dist.plan.ledger import Entry, Transfer

Curve = Mapping[float, float]


def on_curve(curve: Curve, x: float) -> float:
    """Read a curve at ``x``: straight between its points on logarithmic axes, level beyond its ends."""
    points = sorted(curve)
    if x <= points[0] or x >= points[-1]:
        return curve[points[0] if x <= points[0] else points[-1]]
    right = bisect_left(points, x)
    low, high = points[right - 1], points[right]
    share = (log(x) - log(low)) / (log(high) - log(low))
    return curve[low] ** (1 - share) * curve[high] ** share


@dataclass(frozen=True)
class Rates:
    """What a device reaches.

    Attributes:
        products: FLOP/s of matrix products by dtype, over the shortest of their three sides.
        unaligned: factor of that where rows do not begin at multiples of 16 bytes.
        convolution: FLOP/s by dtype; of fp32, with TF32 where the device has it.
        exact_convolution: FLOP/s of fp32 without TF32; None: as with it.
        attention: FLOP/s of the fused kernel, forward and backward.
        passes: bytes/s over the bytes of an operation, by its kind; ``pass`` for kinds that are not there.
        launch_s: seconds from one kernel's start to the next one's, at least.
        queued: launches overlap with running kernels, as on a GPU; else both are added.
        to_device: bytes/s of copies from pinned and from pageable memory.
        wait_s: seconds that a value or a copy which the host waits for leaves the device idle.
        source: of the figures.
    """

    products: Mapping[torch.dtype, Curve]
    convolution: Mapping[torch.dtype, float]
    attention: tuple[float, float]
    passes: Mapping[str, Curve]
    launch_s: float
    queued: bool
    source: str
    exact_convolution: float | None = None
    unaligned: float = 1.0
    to_device: tuple[float, float] = (50e9, 10e9)
    wait_s: float = 0.0

    def with_attention(self, factor: float) -> Rates:
        """The same with fused attention ``factor`` times as fast."""
        forward, backward = self.attention
        return replace(self, attention=(factor * forward, factor * backward))

    def seconds(self, cost: Cost) -> float:
        """Time of one operation."""
        moved = cost.bytes / on_curve(self.passes.get(cost.kind, self.passes["pass"]), cost.bytes)
        busy = moved
        if cost.kind == "product":
            rate = on_curve(self.products[cost.dtype], cost.least)
            slow = 1.0 if cost.aligned else self.unaligned
            busy = max(cost.flops / (rate * slow), moved)
        elif cost.kind == "convolution":
            exact = self.exact_convolution if cost.exact else None
            busy = max(cost.flops / (exact or self.convolution[cost.dtype]), moved)
        elif cost.kind == "attention":
            busy = max(cost.flops / self.attention[cost.backward], moved)
        floor = self.launch_s * cost.kernels
        return max(busy, floor) if self.queued else busy + floor

    def transfer_s(self, transfer: Transfer) -> float:
        """Time that a copy or wait keeps the device idle.

        A pinned copy without a wait runs beside it, and so does what another thread waits for.
        """
        if not transfer.blocking or transfer.ahead:
            return 0.0
        return transfer.bytes / self.to_device[not transfer.pinned] + self.wait_s

    def step_s(self, entries: Iterable[Entry], transfers: Iterable[Transfer] = ()) -> float:
        """Time of a list of operations and transfers, one after another."""
        return sum(self.seconds(e.cost) for e in entries) + sum(map(self.transfer_s, transfers))


def _hopper(memory_rate: float) -> Rates:
    peak = 989e12
    # Share of the data sheet's rate that a library's product reaches, by its shortest side. The clock falls
    # under load, so large products of random numbers stay near two thirds.
    share = {16: 0.05, 64: 0.22, 128: 0.36, 256: 0.50, 512: 0.58, 1024: 0.63, 2048: 0.65}
    bf16 = {float(side): peak * part for side, part in share.items()}
    tf32 = {side: rate / 2 for side, rate in bf16.items()}
    level = {1.0: 0.85 * memory_rate}
    return Rates(
        products={torch.bfloat16: bf16, torch.float32: tf32, torch.float16: bf16},
        convolution={torch.bfloat16: 0.4 * peak, torch.float32: 0.4 * peak / 2},
        exact_convolution=0.6 * 67e12,
        # FlashAttention-2, heads of width 64.
        attention=(300e12, 220e12),
        passes={"pass": level, "rows": {1.0: 0.6 * memory_rate}, "norm": {1.0: 0.7 * memory_rate}},
        launch_s=4e-6,
        queued=True,
        unaligned=0.7,
        wait_s=20e-6,
        source="assumed shares of the data sheet's rates; none was measured on this GPU",
    )


def _ampere() -> Rates:

    hopper, part = _hopper(2.04e12), 312 / 989
    products = {
        dtype: {side: rate * part * 1.2 for side, rate in curve.items()}
        for dtype, curve in hopper.products.items()
    }
    convolution = {dtype: rate * part for dtype, rate in hopper.convolution.items()}
    return replace(
        hopper,
        products=products,
        convolution=convolution,
        exact_convolution=0.6 * 19.5e12,
        attention=(180e12, 130e12),
    )


GPU_RATES = {"h200": _hopper(4.8e12), "h100": _hopper(3.35e12), "a100": _ampere()}
