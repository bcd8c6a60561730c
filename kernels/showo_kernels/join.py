"""JoinFlows: put the text embeddings and projected features of all flows into one packed buffer.

Letters: N embedded tokens (text and image codes), F feature rows, T tokens of the packed row, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class JoinFlows(torch.autograd.Function):
    """Scatter of two sources into the rows of one buffer; backward gathers the rows of each source.

    A source without rows gets a zero gradient instead of None: its parameters stay in the graph, so DDP
    and ZeRO find the same parameters used on every rank, whatever flows a rank's micro-batch holds.
    """

    @staticmethod
    def forward(
        ctx: Any,
        text_ND: Tensor,
        text_rows_N: Tensor,
        features_FD: Tensor,
        feature_rows_F: Tensor,
        length: int,
        keep_grad_T: Tensor | None,
    ) -> Tensor:
        """Copy the rows of both sources into a (length, D) buffer; the other rows are zero."""
        # Under autocast the embeddings may be fp32 and the projected features bf16.
        dtype = torch.promote_types(text_ND.dtype, features_FD.dtype)
        joined_TD = text_ND.new_zeros(length, text_ND.shape[1], dtype=dtype)
        joined_TD.index_copy_(0, text_rows_N, text_ND.to(dtype))
        joined_TD.index_copy_(0, feature_rows_F, features_FD.to(dtype))
        ctx.save_for_backward(text_rows_N, feature_rows_F, keep_grad_T)
        ctx.dtypes = text_ND.dtype, features_FD.dtype
        return joined_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        """Return each source's rows of the gradient, in the source's dtype."""
        text_rows_N, feature_rows_F, keep_grad_T = ctx.saved_tensors

        def rows_of(rows: Tensor, dtype: torch.dtype) -> Tensor:
            grad = grad_TD.index_select(0, rows)
            if keep_grad_T is not None:
                # masked_fill, not a product with the mask, which would give NaN where a gradient is inf.
                grad = grad.masked_fill_(~keep_grad_T.index_select(0, rows)[:, None], 0)
            return grad.to(dtype)

        text_dtype, feature_dtype = ctx.dtypes
        needs_text, _, needs_features, *_ = ctx.needs_input_grad
        grad_text = rows_of(text_rows_N, text_dtype) if needs_text else None
        grad_features = rows_of(feature_rows_F, feature_dtype) if needs_features else None
        return grad_text, None, grad_features, None, None, None


def join_flows(
    text_ND: Tensor,
    text_rows_N: Tensor,
    features_FD: Tensor,
    feature_rows_F: Tensor,
    length: int,
    keep_grad_T: Tensor | None = None,
) -> Tensor:
    """Put text embeddings and projected image features into one packed (T, D) buffer; differentiable.

    Args:
        text_ND: embeddings of text and image-code tokens; N may be 0.
        text_rows_N: int64, the buffer row of each; all rows, these and the features', are different.
        features_FD: projected image features; F may be 0.
        feature_rows_F: int64, the buffer row of each.
        length: T; rows that belong to neither source (padding) are zero.
        keep_grad_T: bool; rows where it is False pass no gradient to their source (RecA's published code
            builds its reconstruction inputs without gradient). None: all rows pass it.

    Returns:
        The buffer, in the wider of the two dtypes. Both sources are in its graph even without rows.
    """
    return JoinFlows.apply(text_ND, text_rows_N, features_FD, feature_rows_F, length, keep_grad_T)
