"""Decompose an attention visibility exactly into runs of rows that need no mask.

A run is a range of rows of one document with the same keys: one contiguous prefix of the document and the
tokens of later global spans. In a full run every row attends to all of them; in a causal run the last row
does, and each row above it to one key less.

Letters: T tokens of the packed row, R runs, G global tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from showo_kernels.visibility import Visibility


@dataclass(frozen=True)
class Run:
    """One run; fields as in :class:`Runs`. ``masked``: the backend must mask some of its pairs."""

    row_start: int
    row_stop: int
    key_start: int
    key_stop: int
    global_start: int
    global_stop: int
    causal: bool
    masked: bool = False

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.row_stop - self.row_start

    @property
    def keys(self) -> int:
        """The number of keys, including those of later global spans."""
        return self.key_stop - self.key_start + self.global_stop - self.global_start


@dataclass(frozen=True)
class Runs:
    """R runs in row order that cover every row once; all tensors are int64 on the CPU.

    The keys of a run are the global tokens ``global_G[global_start:global_stop]`` followed by the tokens
    ``key_start:key_stop``. The global keys come first so that a causal run is exactly causal attention
    aligned to the bottom right: the last row attends to all keys, each row above it to one key less.

    Attributes:
        row_start_R, row_stop_R: the rows.
        key_start_R, key_stop_R: the prefix of the document that the last row attends to.
        global_start_R, global_stop_R: the later global tokens, as a slice of ``global_G``.
        causal_R: bool; the remaining runs are full.
        global_G: indices of all global tokens, ascending.
    """

    row_start_R: Tensor
    row_stop_R: Tensor
    key_start_R: Tensor
    key_stop_R: Tensor
    global_start_R: Tensor
    global_stop_R: Tensor
    causal_R: Tensor
    global_G: Tensor

    def __iter__(self) -> Iterator[Run]:
        columns = (
            self.row_start_R,
            self.row_stop_R,
            self.key_start_R,
            self.key_stop_R,
            self.global_start_R,
            self.global_stop_R,
            self.causal_R,
        )
        return (Run(*run) for run in zip(*(column.tolist() for column in columns), strict=True))


def _next_true(flag_T: Tensor) -> Tensor:
    """For every index, find the first one at or after it where ``flag_T`` is true; T if there is none."""
    index_T = torch.arange(flag_T.numel())
    marked_T = torch.where(flag_T, index_T, flag_T.numel())
    return marked_T.flip(0).cummin(0).values.flip(0)


def _extended_reach(document_T: Tensor, reach_T: Tensor, is_global_T: Tensor) -> Tensor:
    """Move a reach that ends right before a range of global tokens to the end of that range.

    This leaves the visibility unchanged, since global tokens are visible anyway. But the rows of a global
    span, and the row before it, then share one reach and form one full run instead of one run per row.
    """
    size = document_T.numel()
    ends_T = torch.ones(size, dtype=torch.bool)
    ends_T[:-1] = ~is_global_T[1:] | (document_T[1:] != document_T[:-1])
    stretch_end_T = _next_true(ends_T)
    next_T = (reach_T + 1).clamp_max(size - 1)
    extends_T = (next_T > reach_T) & is_global_T[next_T] & (document_T[next_T] == document_T)
    return torch.where(extends_T, stretch_end_T[next_T], reach_T)


def without_tails(visibility: Visibility, read_rows: Tensor) -> Visibility:
    """Make unread rows at the end of a document, right behind a bidirectional span, a document of their own.

    Such is the last token of a reconstruction: it has no label and no other token attends to it, so its
    gradient is zero and what it attends to changes nothing else. But it would be a run of its own, with all
    of its document as keys.

    Args:
        visibility: of the packed row.
        read_rows: indices of the rows whose output is used.
    """
    visibility = visibility.to("cpu")
    document_T, reach_T = visibility.document_T, visibility.reach_T.long()
    index_T = torch.arange(len(visibility))
    in_span_T = reach_T > index_T
    in_span_T[1:] |= reach_T.cummax(0).values[:-1] >= index_T[1:]
    used_T = in_span_T | visibility.is_global_T
    used_T[read_rows.cpu()] = True
    new_T = torch.ones_like(used_T)
    new_T[1:] = document_T[1:] != document_T[:-1]
    # The first used row at or behind each row belongs to another document.
    next_T = _next_true(used_T)
    number_T = torch.cat([new_T.cumsum(0), torch.tensor([0])])
    tail_T = number_T[next_T] != number_T[:-1]
    new_T[1:] |= tail_T[1:] & in_span_T[:-1]
    return replace(visibility, document_T=new_T.cumsum(0).int() - 1)


def find_runs(visibility: Visibility) -> Runs:
    """Cut a visibility into as few runs as possible, with vectorised operations on the CPU."""
    visibility = visibility.to("cpu")
    document_T, is_global_T = visibility.document_T, visibility.is_global_T
    reach_T = _extended_reach(document_T, visibility.reach_T.long(), is_global_T)
    size = document_T.numel()
    index_T = torch.arange(size)
    new_document_T, new_reach_T = torch.ones(2, size, dtype=torch.bool)
    new_document_T[1:] = document_T[1:] != document_T[:-1]
    new_reach_T[1:] = reach_T[1:] != reach_T[:-1]
    # A run starts with a document or a new reach, except between two causal rows: these attend to themselves
    # last, so their reach is new in every row and yet they belong together.
    causal_T = (reach_T == index_T) & new_reach_T
    starts_T = new_document_T | new_reach_T
    starts_T[1:] &= new_document_T[1:] | ~(causal_T[1:] & causal_T[:-1])

    row_start_R = starts_T.nonzero().squeeze(1)
    row_stop_R = torch.cat([row_start_R[1:], torch.tensor([size])])[: row_start_R.numel()]
    key_stop_R = reach_T[row_stop_R - 1] + 1
    last_in_document_T = torch.ones(size, dtype=torch.bool)
    last_in_document_T[:-1] = new_document_T[1:]
    document_stop_R = _next_true(last_in_document_T)[row_start_R] + 1
    # The last document start at or before each row.
    document_start_T = torch.where(new_document_T, index_T, 0).cummax(0).values
    globals_before = torch.cat([torch.zeros(1, dtype=torch.int64), is_global_T.cumsum(0)])
    return Runs(
        row_start_R=row_start_R,
        row_stop_R=row_stop_R,
        key_start_R=document_start_T[row_start_R],
        key_stop_R=key_stop_R,
        global_start_R=globals_before[key_stop_R],
        global_stop_R=globals_before[document_stop_R],
        causal_R=causal_T[row_start_R],
        global_G=is_global_T.nonzero().squeeze(1),
    )
