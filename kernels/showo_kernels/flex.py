"""``flex`` backend: FlexAttention with a block mask computed from the visibility's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from showo_kernels.visibility import Visibility

BLOCK = 128


@cache
def _kernel(device_type: str) -> Any:
    """FlexAttention, compiled on a GPU; capacities are fixed, so static shapes compile once each.

    On a CPU it stays the slow reference, which has no backward.
    """
    return torch.compile(flex_attention, dynamic=False) if device_type == "cuda" else flex_attention


def _blocks_seen(visibility: Visibility) -> tuple[Tensor, Tensor]:
    """Which blocks of keys hold a visible pair, and which nothing else: two bool (N, N).

    Documents are intervals and reach does not decrease, so a block's first and last token decide:
    two different blocks share at most the document that the earlier one ends with and the later
    one begins with.
    """
    document_NB, reach_NB, is_global_NB = (
        x_T.view(-1, BLOCK)
        for x_T in (visibility.document_T, visibility.reach_T, visibility.is_global_T)
    )
    place_NB = torch.arange(document_NB.numel(), device=document_NB.device).view(-1, BLOCK)
    first_N, last_N = document_NB[:, 0], document_NB[:, -1]
    block_N = place_NB[:, 0] // BLOCK
    later_NN = block_N[:, None] < block_N
    shared_NN = torch.where(later_NN, last_N[:, None] == first_N, first_N[:, None] == last_N)
    global_N = (is_global_NB & (document_NB == first_N[:, None])).any(1)
    ahead_NN = (reach_NB[:, -1:] >= place_NB[:, 0]) | global_N
    seen_NN = (shared_NN & (~later_NN | ahead_NN)) | (block_N[:, None] == block_N)

    # A key that is not global must be within reach of every row, so of the first.
    last_plain_N = torch.where(is_global_NB, -1, place_NB).amax(1)
    one_document_NN = (first_N[:, None] == last_N) & (last_N[:, None] == first_N)
    full_NN = one_document_NN & (last_plain_N <= reach_NB[:, :1])
    return seen_NN, full_NN


def _in_order(chosen_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks per row of blocks, and their columns, in front and ascending."""
    order_NN = chosen_NN.int().argsort(dim=1, descending=True, stable=True)
    return chosen_NN.sum(1, dtype=torch.int32)[None, None], order_NN.int()[None, None]


def block_mask(visibility: Visibility) -> BlockMask:
    """The visibility as a block mask, on its device and without waiting for the device.

    The rule is evaluated per pair of blocks, never per pair of tokens; inside partly visible
    blocks the kernel evaluates it itself.

    Raises:
        ValueError: if the row's length is no multiple of 128.
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
    """A block mask, built once per micro-batch."""

    mask: BlockMask

    @classmethod
    def build(cls, visibility: Visibility, device: torch.device) -> FlexPlan:
        """See :func:`block_mask`."""
        return cls(block_mask(visibility.to(device)))

    def __len__(self) -> int:
        return self.mask.seq_lengths[0]

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """One kernel call; see :func:`showo_kernels.attend`. No backward on a CPU."""
        return _kernel(query_BHTD.device.type)(
            query_BHTD,
            key_BHTD,
            value_BHTD,
            block_mask=self.mask,
            scale=scale,
            enable_gqa=query_BHTD.shape[1] != key_BHTD.shape[1],
        )
