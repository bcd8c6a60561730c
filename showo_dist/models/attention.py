"""Omni-attention for any Hugging Face decoder, through transformers' attention interface."""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from showo_kernels import attend

ATTENTION = "showo_omni"


def _omni_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    plan: Any,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: output is (B, T, H, D), and no attention weights exist."""
    # Under autocast the q/k norms come out in fp32; the kernels want one type.
    query_BHTD, key_BHTD = (x.to(value_BHTD.dtype) for x in (query_BHTD, key_BHTD))
    out_BHTD = attend(query_BHTD, key_BHTD, value_BHTD, plan, scale=scaling)
    return out_BHTD.transpose(1, 2), None


def register() -> str:
    """Make the attention known to transformers; returns the name to put in a model's config."""
    AttentionInterface.register(ATTENTION, _omni_attention)
    return ATTENTION
