"""Row gathers whose backward is a gather too: fast, and the same result every time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Gather:
    """A gather of K rows out of T of which every one is used at least once.

    Attributes:
        index_K: the row each output row is a copy of.
        first_T: for every row, where its first copy is.
        again: for the second, third, ... copies: the rows that have one, and where it is.
    """

    index_K: Tensor
    first_T: Tensor
    again: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def build(cls, index_K: Tensor, device: torch.device) -> Gather:
        """Find every row's copies, on the CPU; the result is on ``device``."""
        order_K = index_K.argsort(stable=True)
        copies_T = index_K.bincount()
        first_T = copies_T.cumsum(0) - copies_T
        assert bool((copies_T > 0).all()), "a row that nobody gathers would get no gradient"
        again = []
        for copy in range(1, int(copies_T.max()) if copies_T.numel() else 0):
            rows = (copies_T > copy).nonzero().squeeze(1)
            again.append((rows.to(device), order_K[first_T[rows] + copy].to(device)))
        return cls(index_K.to(device), order_K[first_T].to(device), tuple(again))

    def __call__(self, x_THD: Tensor) -> Tensor:
        """The gathered rows (K, H, D), differentiable."""
        return _GatherRows.apply(x_THD, self)


class _GatherRows(torch.autograd.Function):
    """``index_select`` whose backward adds up copies in a fixed order, in fp32 or better.

    The library's own backward uses atomic additions in the gradient's dtype on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return x_THD.index_select(0, gather.index_K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_KHD: Tensor) -> tuple[Tensor, None]:
        gather: Gather = ctx.gather
        grad_THD = grad_KHD.index_select(0, gather.first_T)
        if gather.again:
            grad_THD = grad_THD.to(torch.promote_types(grad_KHD.dtype, torch.float32))
        for rows, copies in gather.again:
            # No row is named twice here, so the additions cannot collide.
            grad_THD.index_add_(0, rows, grad_KHD.index_select(0, copies).to(grad_THD.dtype))
        return grad_THD.to(grad_KHD.dtype), None
