"""``flex`` backend: FlexAttention with a block mask that is computed from the visibility's arrays.

Letters: N blocks of the row, W tokens of one block (128); B, H, T, D as in :mod:`showo_kernels.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from showo_kernels.capacity import allow_capacities
from showo_kernels.visibility import Visibility

BLOCK = 128


@cache
def _kernel(device_type: str) -> Any:
    """Return FlexAttention, compiled on a GPU; with static shapes it compiles once per capacity.

    On a CPU this is torch's slow reference, which has no backward.
    """
    if device_type != "cuda":
        return flex_attention
    allow_capacities()
    return torch.compile(flex_attention, dynamic=False)


def _blocks_seen(visibility: Visibility) -> tuple[Tensor, Tensor]:
    """Find the pairs of blocks with a visible pair of tokens, and those with visible pairs only.

    Documents are intervals and ``reach`` does not decrease, so the first and last token of a block
    decide: two different blocks share at most one document, with which the earlier block ends and the
    later one begins.

    Returns:
        ``seen``, ``full``: bool (N, N), rows are blocks of queries.
    """
    document_NW, reach_NW, is_global_NW = (
        x_T.view(-1, BLOCK)
        for x_T in (visibility.document_T, visibility.reach_T, visibility.is_global_T)
    )
    index_NW = torch.arange(document_NW.numel(), device=document_NW.device).view(-1, BLOCK)
    first_N, last_N = document_NW[:, 0], document_NW[:, -1]
    block_N = index_NW[:, 0] // BLOCK
    later_NN = block_N[:, None] < block_N  # the keys' block is behind the queries'
    shared_NN = torch.where(later_NN, last_N[:, None] == first_N, first_N[:, None] == last_N)
    # Of a later block, the document it begins with counts: is one of its tokens there global?
    global_N = (is_global_NW & (document_NW == first_N[:, None])).any(1)
    # The last row of a block has the largest reach: does it get to the first key of the later block?
    ahead_NN = (reach_NW[:, -1:] >= index_NW[:, 0]) | global_N
    seen_NN = (shared_NN & (~later_NN | ahead_NN)) | (block_N[:, None] == block_N)

    # Full: one document, and the last key that is not global is within the smallest reach, the first row's.
    last_plain_N = torch.where(is_global_NW, -1, index_NW).amax(1)
    one_document_NN = (first_N[:, None] == last_N) & (last_N[:, None] == first_N)
    full_NN = one_document_NN & (last_plain_N <= reach_NW[:, :1])
    return seen_NN, full_NN


def _in_order(chosen_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of chosen blocks per row, and all columns with the chosen ones first, ascending."""
    order_NN = chosen_NN.int().argsort(dim=1, descending=True, stable=True)
    return chosen_NN.sum(1, dtype=torch.int32)[None, None], order_NN.int()[None, None]


def block_mask(visibility: Visibility) -> BlockMask:
    """Compute the block mask on the visibility's device, without synchronizing with the host.

    The rule is evaluated per pair of blocks, not per pair of tokens; in partly visible blocks the
    kernel evaluates it per pair of tokens.

    Raises:
        ValueError: the row's length is no multiple of 128.
    """
    size = len(visibility)
    if size == 0 or size % BLOCK:
        raise ValueError(
            f"attention backend flex: {size} tokens, but a positive multiple of {BLOCK} is needed: "
            "use Visibility.pad_to"
        )
    document_T, reach_T, is_global_T = (
        visibility.document_T,
        visibility.reach_T,
        visibility.is_global_T,
    )

    def visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (document_T[q] == document_T[k]) & ((k <= reach_T[q]) | is_global_T[k])

    seen_NN, full_NN = _blocks_seen(visibility)
    return BlockMask.from_kv_blocks(
        *_in_order(seen_NN & ~full_NN),
        *_in_order(full_NN),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(size, size),
    )


@dataclass(frozen=True)
class FlexPlan:
    """The block mask of one packed row."""

    mask: BlockMask

    @classmethod
    def build(cls, visibility: Visibility, device: torch.device) -> FlexPlan:
        """Compute the block mask on ``device``; see :func:`block_mask`."""
        return cls(block_mask(visibility.to(device)))

    def __len__(self) -> int:
        return self.mask.seq_lengths[0]

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention in one kernel call; see :func:`showo_kernels.attend`. No backward on a CPU."""
        # Inside a compiled block it is compiled with the block.
        inside = torch.compiler.is_compiling()
        kernel = flex_attention if inside else _kernel(query_BHTD.device.type)
        return kernel(
            query_BHTD,
            key_BHTD,
            value_BHTD,
            block_mask=self.mask,
            scale=scale,
            enable_gqa=query_BHTD.shape[1] != key_BHTD.shape[1],
        )
