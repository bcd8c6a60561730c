"""Compare head and cross-entropy over labelled rows: flow_losses, plain torch, and liger-kernel if installed.

    python benchmarks/losses.py [--device cuda] [--size show-o] [--dtype bf16] [--json FILE]

The plain side computes the logits of all rows at once, in fp32 for the loss, as published. liger-kernel needs
a GPU. Before timing, all sides are checked to give the same loss and gradients. Needs torch only.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from common import Clock, Timing, arguments, interleaved, peak_bytes, report
from torch import Tensor

from showo_dist.runtime.numerics import uses_bf16
from showo_kernels import flow_losses


@dataclass(frozen=True)
class Sizes:
    """Labelled rows, model width, vocabulary."""

    labels: int
    width: int
    vocabulary: int = 58498


SIZES = {
    "tiny": Sizes(40, 32, 300),
    "small": Sizes(454, 512),
    "show-o": Sizes(8192, 2048),
}

# (hidden (P, D), weight (V, D), bias (V,), targets (P,)) -> mean cross-entropy
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _fused(hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_P: Tensor) -> Tensor:
    flow_P = torch.zeros_like(targets_P)
    one_P = torch.ones(len(targets_P), device=targets_P.device)
    return flow_losses(
        hidden_PD, weight_VD, bias_V, targets_P, flow_P, one_P, one_P[:1] / len(one_P)
    )[0]


def _plain(hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_P: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_PD, weight_VD, bias_V).float(), targets_P)


def _liger() -> Loss:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden_PD, weight_VD, bias_V, targets_P: loss(
        weight_VD, hidden_PD, targets_P, bias_V
    )


class Head:
    """One side: a way to compute the loss, with inputs that are the same for all sides.

    Args:
        loss: the function.
        sizes: of the inputs.
        device: of the inputs.
        dtype: of hidden states and weights.
    """

    def __init__(self, loss: Loss, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def sample(*shape: int, scale: float) -> Tensor:
            x = torch.randn(shape, generator=generator, device=device) * scale
            return x.to(dtype).requires_grad_()

        self.loss = loss
        self.inputs = (
            sample(sizes.labels, sizes.width, scale=1.0),
            sample(sizes.vocabulary, sizes.width, scale=0.02),
            sample(sizes.vocabulary, scale=0.02),
        )
        self.targets_P = torch.randint(
            sizes.vocabulary, (sizes.labels,), generator=generator, device=device
        )

    def __call__(self, clock: Clock) -> tuple[Tensor, ...]:
        """Compute the loss and the gradients of hidden states, weight and bias."""
        loss = clock("forward", lambda: self.loss(*self.inputs, self.targets_P))
        gradients = clock("backward", lambda: torch.autograd.grad(loss, self.inputs))
        return (loss.detach(), *gradients)


def check_equal(found: Head, wanted: Head, tolerance: float) -> None:
    """Check that loss and gradients are equal within ``tolerance`` times the largest entry."""
    clock = Clock(found.targets_P.device)
    for x, y in zip(found(clock), wanted(clock), strict=True):
        error = float((x - y).float().abs().max() / y.float().abs().max())
        assert error <= tolerance, f"{found.loss} is off by {error:.1e}"


def row(name: str, timings: dict[str, Timing], memory: int | None) -> dict[str, Any]:
    """Return one row of the table."""
    return {
        "head": name,
        **{f"{stage} ms": 1e3 * timing.wall_s for stage, timing in timings.items()},
        "total ms": 1e3 * sum(timing.wall_s for timing in timings.values()),
        "cpu ms": 1e3 * sum(timing.cpu_s for timing in timings.values()),
        "peak MB": None if memory is None else memory / 1e6,
    }


def main() -> None:
    options = arguments(__doc__, list(SIZES))
    sizes, device = SIZES[options.size], torch.device(options.device)
    dtype = torch.bfloat16 if uses_bf16(options.dtype, device) else torch.float32
    ways: dict[str, Loss] = {"flow_losses": _fused, "plain": _plain}
    if device.type == "cuda" and find_spec("liger_kernel") is not None:
        ways["liger-kernel"] = _liger()
    else:
        print("liger-kernel left out: it is not installed, or there is no GPU")
    heads = {name: Head(way, sizes, device, dtype) for name, way in ways.items()}
    for head in list(heads.values())[1:]:
        check_equal(heads["flow_losses"], head, 1e-4 if dtype == torch.float32 else 2e-2)
    memory = {n: peak_bytes(lambda h=h: h(Clock(device)), device) for n, h in heads.items()}
    timings = interleaved(heads, device, options.repeats)
    rows = [row(name, timings[name], memory[name]) for name in heads]
    findings = {
        f"{other['head']} / flow_losses, {column}": other[column] / rows[0][column]
        for other in rows[1:]
        for column in ("total ms", "cpu ms", "peak MB")
        if rows[0][column]
    }
    report("losses", rows, findings, {**asdict(sizes), "dtype": str(dtype)}, options)


if __name__ == "__main__":
    main()
