"""FlowLosses: output head and cross-entropy in one operation, chunk by chunk over the labelled positions.

A tensor of all tokens × vocabulary never exists: only labelled positions have logits, and only one chunk of
them at a time. A chunk's buffer holds its logits, then their softmax, then their gradient, so forward
computes the gradients of hidden states, weight and bias along with the loss, and backward scales them.

Letters: P labelled positions, C positions of one chunk, D model width, V vocabulary, F flows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Bytes of the fp32 logits of one chunk. Small on a CPU (caches, RAM). On a GPU large enough that the matrix
# products run at full speed and one pass over the head's gradient per chunk does not matter.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
# Tensor cores cannot load the unaligned rows that a vocabulary of 58,498 gives without a detour (assumed to
# cost 30 %, not measured): off the CPU, rows of gradients have a multiple of so many numbers.
_ALIGNED = 64


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
    fused: FusedChunk | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the output head and the cross-entropy (nats) of the labelled positions, summed per flow.

    Args:
        hidden_PD: final hidden states of the labelled positions; P may be 0. The matrix products are
            in its dtype (or autocast's); softmax and all sums are in fp32 or better.
        weight_VD: the head's weight; only needed during this call (ZeRO-3 gathers it for that long).
        bias_V: the head's bias, or None.
        targets_P: int64 classes.
        flow_P: integer flow of each position, in [0, F).
        weight_P: weight of each position within its flow, usually 1. No gradient.
        flow_scale_F: factor of each flow's sum in the total: the flow's coefficient divided by its
            labels in the global batch. No gradient.
        label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
        chunk_rows: positions per chunk; None: as many as fit into ``CHUNK_BYTES``.
        fused: compiled passes over a chunk; None: torch's own, one operation after another.

    Returns:
        ``total``: scalar, differentiable, fp32: the sum of ``flow_scale_F * sums_F``.
        ``sums_F``: sum of ``weight_P`` times cross-entropy per flow, fp32, no gradient.
        With P = 0 all are zero, and backward gives zero gradients instead of None.

    Raises:
        ValueError: ``label_smoothing`` is outside [0, 1), or ``chunk_rows`` below 1.
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
        *map(_without_needless_gradient, (hidden_PD, weight_VD, bias_V)),
        targets_P,
        flow_P,
        weight_P,
        flow_scale_F,
        label_smoothing,
        chunk_rows,
        fused,
    )


def _without_needless_gradient(tensor: Tensor | None) -> Tensor | None:
    """Autograd asks a Function for gradients also where they are disabled."""
    return tensor if tensor is None or torch.is_grad_enabled() else tensor.detach()


class FusedChunk(nn.Module):
    """:func:`_loss_and_gradient` as a module, so that what runs inside can be followed."""

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :func:`_loss_and_gradient`."""
        return _loss_and_gradient(*arguments)


def compiled_chunk() -> FusedChunk:
    """Put :func:`_loss_and_gradient` under ``torch.compile``: one graph for chunks of any length.

    Two passes over the logits, one for the sums and one for the gradient, instead of a dozen.
    """
    chunk = FusedChunk()
    forward = chunk.forward
    compiled = torch.compile(forward, fullgraph=True)

    @wraps(forward)
    def run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        for tensor in arguments[:3]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(*arguments)

    run._torchdynamo_orig_callable = forward  # type: ignore[attr-defined]  # as torch.compile marks its own
    chunk.forward = run  # type: ignore[method-assign]
    return chunk


def _loss_and_gradient(
    logits_CV: Tensor,
    targets_C1: Tensor,
    weight_C: Tensor,
    bias_V: Tensor | None,
    classes: int,
    smoothing: float,
    dtype: torch.dtype,
    summed: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the cross-entropies of a chunk and the gradient of their weighted sum, not in place.

    For ``torch.compile``; run as it is, it takes more memory than :func:`_cross_entropy_` and
    :func:`_logit_gradient_`, which compute the same.

    Args:
        logits_CV: fp32 or better, without bias; may have more columns than classes.
        targets_C1: classes.
        weight_C: factor of each position in the sum.
        bias_V: minus infinity in columns that are no class.
        classes: number of classes.
        smoothing: label smoothing.
        dtype: of the gradient.
        summed: whether its sum is wanted, the gradient of the head's bias.

    Returns:
        Cross-entropies (C,), the logits' gradient (C, V) in ``dtype``, and its sum over positions (V,) or
        None.
    """
    if bias_V is not None:
        logits_CV = logits_CV + bias_V
    shifted_CV = logits_CV - logits_CV.amax(1, keepdim=True)
    exp_CV = shifted_CV.exp()
    total_C1 = exp_CV.sum(1, keepdim=True)
    aim_C1 = shifted_CV.gather(1, targets_C1)
    class_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    target_CV = torch.where(class_V == targets_C1, 1 - smoothing, 0.0)
    if smoothing:
        is_class_V = class_V < classes
        mean_C1 = torch.where(is_class_V, shifted_CV, 0.0).sum(1, keepdim=True) / classes
        aim_C1 = (1 - smoothing) * aim_C1 + smoothing * mean_C1
        target_CV = target_CV + torch.where(is_class_V, smoothing / classes, 0.0)
    grad_CV = (exp_CV / total_C1 - target_CV) * weight_C[:, None]
    loss_C = (total_C1.log() - aim_C1).squeeze(1)
    grad_CV = grad_CV.to(dtype)
    # Of the rounded numbers, as the weight's gradient: the fp32 ones are then never written.
    return loss_C, grad_CV, grad_CV.sum(0, dtype=logits_CV.dtype) if summed else None


class FlowLosses(torch.autograd.Function):
    """Weighted sum of cross-entropies whose forward already computes the gradients.

    Backward only scales them, so neither the logits nor the head's weight is kept for it: a weight that is
    partitioned by ZeRO-3 is released after forward.
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
        fused: FusedChunk | None,
    ) -> tuple[Tensor, Tensor]:
        """Compute losses and gradients, ``chunk_rows`` positions at a time."""
        accurate = torch.promote_types(hidden_PD.dtype, torch.float32)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        gradients = _Gradients(
            torch.empty_like(hidden_PD) if needs_hidden else None,
            torch.zeros_like(weight_VD, dtype=accurate) if needs_weight else None,
            torch.zeros_like(bias_V, dtype=accurate) if bias_V is not None and needs_bias else None,
        )
        # Under autocast the weight is fp32 and the hidden states are bf16.
        head = _head(weight_VD.to(hidden_PD.dtype), bias_V, label_smoothing, fused)
        scale_P = weight_P * flow_scale_F[flow_P]
        loss_P = torch.empty(hidden_PD.shape[0], dtype=accurate, device=hidden_PD.device)
        # Autocast off: the dtype of every product is chosen here.
        with torch.autocast(hidden_PD.device.type, enabled=False):
            for start in range(0, hidden_PD.shape[0], chunk_rows):
                rows = slice(start, start + chunk_rows)
                loss_P[rows] = _chunk(rows, hidden_PD, targets_P, scale_P, head, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden_PD.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        sums_F = _per_flow(loss_P.double(), weight_P.double(), flow_P, len(flow_scale_F))
        total = (sums_F * flow_scale_F.double()).sum().to(accurate)
        sums_F = sums_F.to(accurate)
        ctx.mark_non_differentiable(sums_F)
        return total, sums_F

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that forward computed, times the gradient of the total."""
        scaled = (
            _scaled_to(gradient, grad_total, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, *(None,) * 7


class _Head(NamedTuple):
    """The head; ``weight_VD`` is in the dtype of the matrix products.

    With ``fused``, off the CPU, weight and bias have rows behind the ``classes``, so that rows of logits and
    of their gradient are aligned; their bias is minus infinity.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    label_smoothing: float
    fused: FusedChunk | None
    classes: int


def _head(
    weight_VD: Tensor, bias_V: Tensor | None, label_smoothing: float, fused: FusedChunk | None
) -> _Head:
    classes = weight_VD.shape[0]
    missing = -classes % _ALIGNED
    if fused is not None and missing and not weight_VD.is_cpu:
        weight_VD = nn.functional.pad(weight_VD, (0, 0, 0, missing))
        bias_V = weight_VD.new_zeros(classes) if bias_V is None else bias_V
        bias_V = nn.functional.pad(bias_V, (0, missing), value=-torch.inf)
    return _Head(weight_VD, bias_V, label_smoothing, fused, classes)


class _Gradients(NamedTuple):
    """Gradients of the total, filled chunk by chunk; None where no gradient is needed."""

    hidden_PD: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None


def _chunk(
    rows: slice,
    hidden_PD: Tensor,
    targets_P: Tensor,
    weight_P: Tensor,
    head: _Head,
    gradients: _Gradients,
) -> Tensor:
    """Return the cross-entropy of the positions ``rows`` and add their part to ``gradients``.

    ``weight_P`` is the factor of each position in the total.
    """
    hidden_CD, targets_C1 = hidden_PD[rows], targets_P[rows, None]
    accurate = torch.promote_types(hidden_CD.dtype, torch.float32)
    buffer_CV = _product(hidden_CD, head.weight_VD.t(), accurate)
    if all(gradient is None for gradient in gradients):
        # Columns that fill up the vocabulary would be in the mean that label smoothing takes.
        logits_CV = _biased_(buffer_CV[:, : head.classes], head)
        return _cross_entropy_(logits_CV, targets_C1, head.label_smoothing)
    weight_C, summed = weight_P[rows].to(accurate), gradients.bias_V is not None
    if head.fused is None:
        loss_C = _cross_entropy_(_biased_(buffer_CV, head), targets_C1, head.label_smoothing)
        grad_CV = _logit_gradient_(buffer_CV, targets_C1, weight_C, head.label_smoothing)
        sum_V = grad_CV.sum(0) if summed else None
    else:
        # On a CPU the product that makes the weight's gradient takes fp32.
        dtype = accurate if buffer_CV.is_cpu else hidden_CD.dtype
        settings = head.bias_V, head.classes, head.label_smoothing, dtype, summed
        loss_C, grad_CV, sum_V = head.fused(buffer_CV, targets_C1, weight_C, *settings)
    rounded_CV = _rounded(grad_CV, hidden_CD.dtype)
    if gradients.bias_V is not None and sum_V is not None:
        gradients.bias_V.add_(sum_V[: head.classes])
    if gradients.hidden_PD is not None:
        gradients.hidden_PD[rows] = rounded_CV @ head.weight_VD
    if gradients.weight_VD is not None:
        _add_product_(gradients.weight_VD, grad_CV, rounded_CV, hidden_CD)
    return loss_C


def _biased_(logits_CV: Tensor, head: _Head) -> Tensor:
    if head.bias_V is None:
        return logits_CV
    return logits_CV.add_(head.bias_V[: logits_CV.shape[1]])


def _cross_entropy_(logits_CV: Tensor, targets_C1: Tensor, smoothing: float) -> Tensor:
    """Compute the cross-entropy per position, and replace the logits by their softmax in place.

    Label smoothing s moves the target from one class to (1 - s) of it plus s spread over all classes, so the
    loss is log-sum-exp - (1 - s) · logit of the target - s · mean logit.
    """
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
    """Replace the softmax in place by the gradient: softmax minus the smoothed target, times the weight."""
    vocabulary = softmax_CV.shape[1]
    if smoothing:
        softmax_CV.sub_(smoothing / vocabulary)
    one_C1 = torch.full_like(targets_C1, 1, dtype=softmax_CV.dtype)
    softmax_CV.scatter_add_(1, targets_C1, one_C1.mul_(smoothing - 1))
    return softmax_CV.mul_(weight_C[:, None])


def _rounded(grad_CV: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a chunk's gradient to the dtype of the products; off the CPU, in aligned rows."""
    if grad_CV.is_cpu or grad_CV.dtype == dtype:
        return grad_CV.to(dtype)
    positions, classes = grad_CV.shape
    padded = grad_CV.new_empty(positions, -(-classes // _ALIGNED) * _ALIGNED, dtype=dtype)
    return padded[:, :classes].copy_(grad_CV)


def _add_product_(total_VD: Tensor, grad_CV: Tensor, rounded_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add ``grad.T @ hidden`` to the head's gradient, whose sum over chunks is in fp32 or better.

    Args:
        total_VD: the sum.
        grad_CV: gradient of the chunk's logits, in the total's dtype.
        rounded_CV: the same in the dtype of ``hidden_CD``, the dtype of the products.
        hidden_CD: hidden states of the chunk.
    """
    if hidden_CD.dtype == total_VD.dtype:
        total_VD.addmm_(grad_CV.t()[: len(total_VD)], hidden_CD)
    elif hidden_CD.is_cpu and hidden_CD.dtype == torch.bfloat16:
        # addmm_ passes over the total once, a separate product and sum four times; it is larger than any
        # cache. Its factors are fp32, and are rounded to bf16 inside the product.
        with _bf16_factors():
            total_VD.addmm_(grad_CV.t(), hidden_CD.float())
    else:
        total_VD.add_(_product(rounded_CV.t(), hidden_CD, total_VD.dtype)[: len(total_VD)])


@contextmanager
def _bf16_factors() -> Iterator[None]:
    """Let fp32 matrix products on a CPU round their factors to bf16, where it has instructions for that."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made when torch starts
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute ``left @ right`` as ``dtype``; on a GPU without rounding to half precision in between."""
    if left.dtype != dtype and not left.is_cpu:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def _per_flow(loss_P: Tensor, weight_P: Tensor, flow_P: Tensor, num_flows: int) -> Tensor:
    """Sum the weighted losses per flow.

    A reduction of a (F, P) tensor, because a scatter is not deterministic on a GPU; and ``torch.where``
    instead of a product, so that a loss that is not finite affects its own flow only, and none where its
    weight is 0 (padding).
    """
    member_FP = flow_P[None, :] == torch.arange(num_flows, device=flow_P.device)[:, None]
    return torch.where(member_FP & (weight_P > 0), loss_P * weight_P, 0.0).sum(dim=1)


def _scaled_to(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """Compute ``gradient * factor`` as ``dtype``."""
    if gradient is None:
        return None
    # Saves one pass over the head's gradient. Not on a GPU: reading the factor would wait for it.
    if factor.is_cpu and factor == 1:
        return gradient.to(dtype)
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
