"""Stand-ins for attention kernels on the meta device, with the same outputs and tensors kept for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from showo_dist.plan.costs import ATTENTION
from showo_dist.plan.ledger import host_work
from showo_kernels import Visibility, sdpa
from showo_kernels.attention import BUILDERS
from showo_kernels.flash import FlashPlan
from showo_kernels.sdpa import SdpaPlan
from showo_kernels.varlen import VarlenCall


@dataclass(frozen=True)
class WholeRow:
    """Plan of the ``native`` backend: one kernel call over the packed row."""

    tokens: int
    pairs: int

    @classmethod
    def build(cls, visibility: Visibility, _device: torch.device) -> WholeRow:
        return cls(len(visibility), visibility.pairs())

    def __len__(self) -> int:
        return self.tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows = query.shape[1] * self.tokens
        return FusedAttention.apply(
            query, key, value, None, rows, self.pairs * query.shape[1], True
        )


class FusedAttention(torch.autograd.Function):
    """A FlashAttention-like kernel: keeps inputs, output and one fp32 value per query row and head."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        rows: int,
        pairs: int,
        tokens_first: bool = False,
    ) -> Tensor:
        """Allocate an output like ``query``.

        Args:
            rows: number of log-sum-exp values to keep.
            pairs: (query, key) pairs that the kernel computes, summed over heads.
            tokens_first: whether the output is laid out as (B, T, H, D) in memory.
        """
        if tokens_first:
            (b, h, t, d) = query.shape
            out = query.new_empty(b, t, h, d).transpose(1, 2)
        else:
            out = torch.empty_like(query)
        sums = torch.empty(rows, dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums, mask)
        ctx.pairs = pairs
        ATTENTION(query, key, value, pairs, False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        ATTENTION(query, key, value, ctx.pairs, True)
        return *(torch.empty_like(x) for x in (query, key, value)), *(None,) * 4


class ShapedVarlen:
    """FlashAttention's allocations."""

    def forward(
        self, q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
    ) -> tuple[Tensor, Tensor]:
        rows, heads, _ = q_QHD.shape
        ATTENTION(q_QHD, k_KHD, v_KHD, call.pairs * heads, False)
        sums_HQ = torch.empty(heads, rows, dtype=torch.float32, device=q_QHD.device)
        return torch.empty_like(q_QHD), sums_HQ

    def backward(
        self,
        grad_QHD: Tensor,
        q_QHD: Tensor,
        k_KHD: Tensor,
        v_KHD: Tensor,
        _out_QHD: Tensor,
        _sums_HQ: Tensor,
        call: VarlenCall,
        _scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ATTENTION(q_QHD, k_KHD, v_KHD, call.pairs * q_QHD.shape[1], True)
        return torch.empty_like(q_QHD), torch.empty_like(k_KHD), torch.empty_like(v_KHD)


_torch_sdpa = F.scaled_dot_product_attention


def _sdpa(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    attn_mask: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """torch's function for tensors with values; on the meta device, the allocations that it makes.

    torch converts a boolean mask to the query's dtype first, which takes memory.
    """
    if not query_BHQD.is_meta:
        return _torch_sdpa(query_BHQD, key_BHKD, value_BHKD, attn_mask, **settings)
    mask = None
    if attn_mask is not None:
        mask = torch.empty(attn_mask.shape, dtype=query_BHQD.dtype, device=query_BHQD.device)
    rows = query_BHQD.shape[:3].numel()
    pairs = rows * key_BHKD.shape[2] // (2 if settings.get("is_causal") else 1)
    return FusedAttention.apply(query_BHQD, key_BHKD, value_BHKD, mask, rows, pairs)


def _planned_for_real(
    build: Callable[..., Any],
) -> Callable[[Visibility, torch.device], Any]:
    """Build the attention plan with real values on the CPU: it depends on the visibility's values."""

    def inner(visibility: Visibility, device: torch.device) -> Any:
        with host_work():
            return build(visibility, device)

    return inner


def _working_copy(x_BHTD: Tensor) -> Tensor:
    """Convert half precision to fp32, as ``sdpa`` does on a CPU."""
    return x_BHTD.float() if x_BHTD.dtype.itemsize == 2 else x_BHTD


@contextmanager
def attention_of_shapes(device: torch.device) -> Iterator[None]:
    """Let ``native``, ``sdpa`` and ``flash`` run on meta tensors with the memory use of their kernels.

    Args:
        device: kind of device of a real run.
    """
    builders: dict[str, Callable[..., Any]] = {
        "native": _planned_for_real(WholeRow.build),
        "sdpa": _planned_for_real(SdpaPlan.build),
        "flash": _planned_for_real(partial(FlashPlan.build, varlen=ShapedVarlen())),
    }
    copy = _working_copy if device.type == "cpu" else sdpa._working_copy
    with (
        patch.dict(BUILDERS, builders),
        patch.object(F, "scaled_dot_product_attention", _sdpa),
        patch.object(sdpa, "_working_copy", copy),
    ):
        yield
