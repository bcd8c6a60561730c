"""``sdpa`` backend: torch's ``scaled_dot_product_attention``, in one call per run.

The default on a CPU where ``native`` cannot run. Neighbouring runs of a document are joined under a small
mask where that is cheaper than another call: a short document becomes one call, a long one a call per run.

Letters: Q rows and K keys of one call, G later global tokens of a run; B, H, T, D as in
:mod:`showo_kernels.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from showo_kernels.planned import Recomputed
from showo_kernels.runs import Run, Runs, find_runs
from showo_kernels.visibility import Visibility

# The cost of one more call, in masked (query, key) pairs that could be computed instead: about 55 µs per
# call, forward and backward, against 39 ns per pair at 6 heads of width 32 (one core).
PAIRS_PER_CALL = 1500


@dataclass(frozen=True)
class _Call:
    """One call for some rows of one document; all slices count from the document's first token."""

    rows: slice
    keys: tuple[slice, ...]
    is_causal: bool
    mask_QK: Tensor | None


def _pairs(run: Run) -> float:
    """Count the pairs that a call computes: of a square causal one, the kernel skips half."""
    pairs = run.rows * run.keys
    return pairs / 2 if run.causal and run.rows == run.keys else pairs


def _join_cheap_runs(runs: Iterator[Run]) -> Iterator[Run]:
    """Join neighbouring runs of one document where that is cheaper than another call.

    Reach does not decrease, so the keys of a run include those of the runs before it. A joined run is
    therefore the last run with more rows, and it is ``masked``.
    """
    current = next(runs)
    for run in runs:
        joined = replace(run, row_start=current.row_start, causal=False, masked=True)
        if _pairs(joined) <= _pairs(current) + _pairs(run) + PAIRS_PER_CALL:
            current = joined
        else:
            yield current
            current = run
    yield current


def _ranges(indices: list[int]) -> Iterator[slice]:
    """Turn ascending indices into slices, one per contiguous range."""
    # Within a range, an index minus its number in the list is constant.
    for _, pairs in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in pairs]
        yield slice(members[0], members[-1] + 1)


def _make_call(run: Run, runs: Runs, visibility: Visibility, device: torch.device) -> _Call:
    first = run.key_start
    later_G = runs.global_G[run.global_start : run.global_stop]
    prefix = slice(0, run.key_stop - first)
    # is_causal aligns to the top left, runs to the bottom right: the same for a square only.
    square = run.causal and run.rows == run.keys
    mask_QK = None
    if run.masked or (run.causal and not square):
        keys_K = torch.cat([later_G, torch.arange(first, run.key_stop)])
        rows_Q = torch.arange(run.row_start, run.row_stop)
        mask_QK = visibility.between(rows_Q, keys_K).to(device)
    return _Call(
        rows=slice(run.row_start - first, run.row_stop - first),
        keys=(*_ranges((later_G - first).tolist()), prefix),
        is_causal=square,
        mask_QK=mask_QK,
    )


def _select(x_BTHD: Tensor, keys: tuple[slice, ...]) -> Tensor:
    """Take the slices ``keys`` of a document's tokens: (1, H, K, D)."""
    parts = [x_BTHD[:, part] for part in keys]
    return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).transpose(1, 2)


def _working_copy(x_BHTD: Tensor) -> Tensor:
    """Convert 16-bit floats to fp32 on a CPU, where their backward is 2–5 times slower on short documents."""
    return x_BHTD.float() if x_BHTD.is_cpu and x_BHTD.dtype.itemsize == 2 else x_BHTD


@dataclass(frozen=True)
class SdpaPlan(Recomputed):
    """The length of each document, and the calls that cover its rows in order."""

    lengths: list[int]
    calls: list[list[_Call]]

    @classmethod
    def build(cls, visibility: Visibility, device: torch.device) -> SdpaPlan:
        """Decompose on the CPU, then copy the masks to ``device``."""
        host = visibility.to("cpu")
        runs = find_runs(host)
        calls = []
        for _, document in groupby(runs, key=lambda run: run.key_start):
            joined = _join_cheap_runs(document)
            calls.append([_make_call(run, runs, host, device) for run in joined])
        lengths = torch.unique_consecutive(host.document_T, return_counts=True)[1].tolist()
        return cls(lengths, calls)

    def __len__(self) -> int:
        return sum(self.lengths)

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention call by call; see :func:`showo_kernels.attend`."""
        if not self.lengths:
            return torch.zeros_like(query_BHTD)
        grouped = query_BHTD.shape[1] != key_BHTD.shape[1]
        # One split per tensor, whose backward is one concatenation. A slice of the whole row would have a
        # backward that fills a tensor of the row's size, once per call.
        per_tensor = (
            _working_copy(x_BHTD).transpose(1, 2).split(self.lengths, dim=1)
            for x_BHTD in (query_BHTD, key_BHTD, value_BHTD)
        )
        outputs = [
            F.scaled_dot_product_attention(
                query_BTHD[:, call.rows].transpose(1, 2),
                _select(key_BTHD, call.keys),
                _select(value_BTHD, call.keys),
                attn_mask=call.mask_QK,
                is_causal=call.is_causal,
                scale=scale,
                enable_gqa=grouped,
            )
            for query_BTHD, key_BTHD, value_BTHD, calls in zip(*per_tensor, self.calls, strict=True)
            for call in calls
        ]
        return torch.cat(outputs, dim=2).to(query_BHTD.dtype)
