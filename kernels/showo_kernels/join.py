"""JoinFlows: text embeddings and projected features of all flows in one packed buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class JoinFlows(torch.autograd.Function):
    """Concatenation by row number whose backward hands every source its rows.

    A source without rows gets a zero gradient, not none: its parameters stay in the graph, so
    that DDP and ZeRO see the same parameters used on every rank.
    """

    @staticmethod
    def forward(
        ctx: Any,
        text_ND: Tensor,
        text_rows_N: Tensor,
        features_MD: Tensor,
        feature_rows_M: Tensor,
        length: int,
        keep_grad_L: Tensor | None,
    ) -> Tensor:
        """Lay the rows of both sources into a (length, D) buffer; the other rows are zero."""
        dtype = torch.promote_types(text_ND.dtype, features_MD.dtype)
        joined_LD = text_ND.new_zeros(length, text_ND.shape[1], dtype=dtype)
        joined_LD.index_copy_(0, text_rows_N, text_ND.to(dtype))
        joined_LD.index_copy_(0, feature_rows_M, features_MD.to(dtype))
        ctx.save_for_backward(text_rows_N, feature_rows_M, keep_grad_L)
        ctx.dtypes = text_ND.dtype, features_MD.dtype
        return joined_LD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LD: Tensor) -> tuple[Tensor | None, ...]:
        """Each source's rows of the gradient, in the source's dtype."""
        text_rows_N, feature_rows_M, keep_grad_L = ctx.saved_tensors

        def rows_of(rows: Tensor, dtype: torch.dtype) -> Tensor:
            grad = grad_LD.index_select(0, rows)
            if keep_grad_L is not None:
                # masked_fill, not a product: a cut row stays cut even where its gradient is inf.
                grad = grad.masked_fill_(~keep_grad_L.index_select(0, rows)[:, None], 0)
            return grad.to(dtype)

        text_dtype, feature_dtype = ctx.dtypes
        needs_text, _, needs_features, *_ = ctx.needs_input_grad
        grad_text = rows_of(text_rows_N, text_dtype) if needs_text else None
        grad_features = rows_of(feature_rows_M, feature_dtype) if needs_features else None
        return grad_text, None, grad_features, None, None, None


def join_flows(
    text_ND: Tensor,
    text_rows_N: Tensor,
    features_MD: Tensor,
    feature_rows_M: Tensor,
    length: int,
    keep_grad_L: Tensor | None = None,
) -> Tensor:
    """Lay text embeddings and image features into one packed (length, D) buffer.

    Args:
        text_ND: embeddings of N text and image-code tokens; N may be 0.
        text_rows_N: int64, the row of each; no row is named twice, here or in the features.
        features_MD: M projected image features; M may be 0.
        feature_rows_M: int64, the row of each.
        length: rows of the buffer; rows that nobody fills (padding) are zero.
        keep_grad_L: bool; rows where it is False pass no gradient to their source (RecA's
            published code builds its reconstruction inputs without gradient).

    Returns:
        The buffer, in the wider of the two dtypes. Both sources are connected to it even when
        they have no rows.
    """
    return JoinFlows.apply(text_ND, text_rows_N, features_MD, feature_rows_M, length, keep_grad_L)
