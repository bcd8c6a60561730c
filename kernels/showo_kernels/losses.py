"""FlowLosses: output head and cross-entropy, fused and chunked over the labelled positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Size of one chunk of fp32 logits. Small on a CPU (caches, RAM); on a GPU large enough that the
# products run at full speed and adding up the head's gradient once per chunk does not matter.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


class _Head(NamedTuple):
    """The head's tensors as one chunk needs them; ``weight_VD`` in the dtype of the products."""

    weight_VD: Tensor
    bias_V: Tensor | None
    label_smoothing: float


class _Gradients(NamedTuple):
    """Buffers that the chunks fill; None where no gradient is asked for."""

    hidden_PD: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left @ right`` as ``dtype``; on a GPU half-precision products come out unrounded."""
    if left.is_cuda and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def _chunk_logits(hidden_CD: Tensor, head: _Head) -> Tensor:
    """Logits of one chunk: product in the input's dtype, result in fp32 (or the wider input)."""
    accurate = torch.promote_types(hidden_CD.dtype, torch.float32)
    logits_CV = _product(hidden_CD, head.weight_VD.t(), accurate)
    return logits_CV if head.bias_V is None else logits_CV.add_(head.bias_V)


def _cross_entropy_(logits_CV: Tensor, targets_C1: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy per row; leaves the softmax in ``logits_CV``, which is the only buffer."""
    peak_C1 = logits_CV.amax(1, keepdim=True)
    logits_CV.sub_(peak_C1)
    aim_C1 = logits_CV.gather(1, targets_C1)
    if smoothing:
        aim_C1 = (1 - smoothing) * aim_C1 + smoothing * logits_CV.mean(1, keepdim=True)
    total_C1 = logits_CV.exp_().sum(1, keepdim=True)
    logits_CV.div_(total_C1)
    return (total_C1.log() - aim_C1).squeeze(1)


def _logit_gradient_(
    softmax_CV: Tensor, targets_C1: Tensor, weight_C: Tensor, smoothing: float
) -> Tensor:
    """Turn the softmax in place into the gradient of the weighted cross-entropy."""
    vocabulary = softmax_CV.shape[1]
    if smoothing:
        softmax_CV.sub_(smoothing / vocabulary)
    one_C1 = torch.full_like(targets_C1, 1, dtype=softmax_CV.dtype)
    softmax_CV.scatter_add_(1, targets_C1, one_C1.mul_(smoothing - 1))
    return softmax_CV.mul_(weight_C[:, None])


@contextmanager
def _bf16_factors() -> Iterator[None]:
    """fp32 products on a CPU round their factors to bf16 if it has instructions for that; sums stay fp32."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made when torch starts
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _add_product_(total_VD: Tensor, grad_CV: Tensor, rounded_CV: Tensor, hidden_CD: Tensor) -> None:
    """``total += grad.T @ hidden`` with the sum over chunks kept in fp32 or better.

    Args:
        total_VD: fp32 or better.
        grad_CV: in the total's dtype.
        rounded_CV: the same in the dtype of ``hidden_CD``, which is that of the products.
        hidden_CD: hidden states of the chunk.
    """
    if hidden_CD.dtype == total_VD.dtype:
        total_VD.addmm_(grad_CV.t(), hidden_CD)
    elif hidden_CD.is_cpu and hidden_CD.dtype == torch.bfloat16:
        # One pass over the total instead of four: it is larger than any cache.
        with _bf16_factors():
            total_VD.addmm_(grad_CV.t(), hidden_CD.float())
    else:
        total_VD.add_(_product(rounded_CV.t(), hidden_CD, total_VD.dtype))


def _chunk(
    rows: slice,
    hidden_PD: Tensor,
    targets_P: Tensor,
    weight_P: Tensor,
    head: _Head,
    gradients: _Gradients,
) -> Tensor:
    """Cross-entropy of the chunk's rows; their gradients go into ``gradients``."""
    hidden_CD, targets_C1 = hidden_PD[rows], targets_P[rows, None]
    buffer_CV = _chunk_logits(hidden_CD, head)
    loss_C = _cross_entropy_(buffer_CV, targets_C1, head.label_smoothing)
    if all(gradient is None for gradient in gradients):
        return loss_C
    weight_C = weight_P[rows].to(buffer_CV.dtype)
    buffer_CV = _logit_gradient_(buffer_CV, targets_C1, weight_C, head.label_smoothing)
    if gradients.bias_V is not None:
        gradients.bias_V.add_(buffer_CV.sum(0))
    rounded_CV = buffer_CV.to(hidden_CD.dtype)
    if gradients.hidden_PD is not None:
        gradients.hidden_PD[rows] = rounded_CV @ head.weight_VD
    if gradients.weight_VD is not None:
        _add_product_(gradients.weight_VD, buffer_CV, rounded_CV, hidden_CD)
    return loss_C


def _per_flow(loss_P: Tensor, flow_P: Tensor, num_flows: int) -> Tensor:
    """Sum per flow, deterministic on a GPU; a loss that is not finite stays in its own flow."""
    member_FP = flow_P[None, :] == torch.arange(num_flows, device=flow_P.device)[:, None]
    return torch.where(member_FP, loss_P.double(), 0.0).sum(dim=1)


def _scaled_to(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """``gradient * factor`` as ``dtype``."""
    if gradient is None:
        return None
    # One pass less over the head's weight; a GPU would have to be waited for to know the factor.
    unchanged = factor.is_cpu and factor == 1
    return (gradient if unchanged else gradient * factor).to(dtype)


class FlowLosses(torch.autograd.Function):
    """Weighted sum of cross-entropies whose forward already computes what backward returns.

    Backward only scales, so neither the logits nor the head's weight is kept: the weight may be a
    ZeRO-3 parameter that is gone by then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_P: Tensor,
        flow_P: Tensor,
        weight_P: Tensor,
        flow_scale_F: Tensor,
        label_smoothing: float,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """Losses and gradients, ``chunk_rows`` rows at a time."""
        accurate = torch.promote_types(hidden_PD.dtype, torch.float32)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        gradients = _Gradients(
            torch.empty_like(hidden_PD) if needs_hidden else None,
            torch.zeros_like(weight_VD, dtype=accurate) if needs_weight else None,
            torch.zeros_like(bias_V, dtype=accurate) if bias_V is not None and needs_bias else None,
        )
        head = _Head(weight_VD.to(hidden_PD.dtype), bias_V, label_smoothing)
        scale_P = weight_P * flow_scale_F[flow_P]
        loss_P = torch.empty(hidden_PD.shape[0], dtype=accurate, device=hidden_PD.device)
        with torch.autocast(hidden_PD.device.type, enabled=False):
            for start in range(0, hidden_PD.shape[0], chunk_rows):
                rows = slice(start, start + chunk_rows)
                loss_P[rows] = _chunk(rows, hidden_PD, targets_P, scale_P, head, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden_PD.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        sums_F = _per_flow(loss_P.double() * weight_P.double(), flow_P, len(flow_scale_F))
        total = (sums_F * flow_scale_F.double()).sum().to(accurate)
        sums_F = sums_F.to(accurate)
        ctx.mark_non_differentiable(sums_F)
        return total, sums_F

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of forward, scaled by the gradient of the total."""
        scaled = (
            _scaled_to(gradient, grad_total, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, *(None,) * 6


def flow_losses(
    hidden_PD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_P: Tensor,
    flow_P: Tensor,
    weight_P: Tensor,
    flow_scale_F: Tensor,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of P labelled positions over V classes without a (P, V) tensor.

    Args:
        hidden_PD: final hidden states of the labelled positions; P may be 0. Its dtype (or
            autocast's) is that of the matrix products; softmax and all sums are fp32 or better.
        weight_VD: the head's weight, present during this call only (ZeRO-3 gathers it).
        bias_V: the head's bias, or None.
        targets_P: int64 classes.
        flow_P: integer flow of each position, in [0, F).
        weight_P: weight of each position within its flow, usually 1. No gradient.
        flow_scale_F: factor of each flow's sum in the total: its coefficient over the labels of
            the global batch. No gradient.
        label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
        chunk_rows: rows of logits that exist at a time; chosen by memory when None.

    Returns:
        ``total``: scalar, differentiable, fp32: the sum of flow_scale_F times sums_F.
        ``sums_F``: sum of weight_P times cross-entropy per flow, fp32, no gradient.
        With P == 0 all are zero, and backward gives zero gradients, not missing ones.

    Raises:
        ValueError: if ``label_smoothing`` is outside [0, 1) or ``chunk_rows`` below 1.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}: allowed are values in [0, 1)")
    if chunk_rows is None:
        budget = CHUNK_BYTES.get(hidden_PD.device.type, CHUNK_BYTES["cuda"])
        chunk_rows = max(1, budget // (4 * weight_VD.shape[0]))
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}: at least one row is needed")
    device = hidden_PD.device.type
    if torch.is_autocast_enabled(device):
        hidden_PD = hidden_PD.to(torch.get_autocast_dtype(device))
    return FlowLosses.apply(
        hidden_PD,
        weight_VD,
        bias_V,
        targets_P,
        flow_P,
        weight_P,
        flow_scale_F,
        label_smoothing,
        chunk_rows,
    )
