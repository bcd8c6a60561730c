"""``sdpa`` backend: the runs of a visibility through ``scaled_dot_product_attention``.

The default on a CPU where ``native`` does not run. Runs go through one call each, except where
joining neighbours under a small mask is cheaper than another call: a short document becomes one
call, a long one a call per run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from showo_kernels.runs import Run, Runs, find_runs
from showo_kernels.visibility import Visibility

# What one more call costs, in (query, key) pairs computed in vain: about 55 microseconds forward
# and backward, against 39 ns a pair at 6 heads of 32 (one core).
PAIRS_PER_CALL = 1500


@dataclass(frozen=True)
class _Call:
    """Rows of one document attended at once; places count from the document's first token."""

    rows: slice
    keys: tuple[slice, ...]
    is_causal: bool
    mask_QK: Tensor | None


def _pairs(run: Run) -> float:
    """Pairs that a call computes: without a mask only the square causal kernel leaves half out."""
    pairs = run.rows * run.keys
    return pairs / 2 if run.causal and run.rows == run.keys else pairs


def _join_cheap_runs(runs: Iterator[Run]) -> Iterator[Run]:
    """Join neighbouring runs of one document where that costs less than a call.

    The last run's keys hold those of the runs before it, so a joined run is the last run with more
    rows; it needs a mask, which ``masked`` says.
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


def _stretches(places: list[int]) -> Iterator[slice]:
    """Ascending places as slices: one per uninterrupted stretch."""
    for _, stretch in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        members = [place for _, place in stretch]
        yield slice(members[0], members[-1] + 1)


def _make_call(run: Run, runs: Runs, visibility: Visibility, device: torch.device) -> _Call:
    first = run.key_start
    later_G = runs.global_G[run.global_start : run.global_stop]
    prefix = slice(0, run.key_stop - first)
    square = run.causal and run.rows == run.keys
    mask_QK = None
    if run.masked or (run.causal and not square):
        keys_K = torch.cat([later_G, torch.arange(first, run.key_stop)])
        rows_Q = torch.arange(run.row_start, run.row_stop)
        mask_QK = visibility.between(rows_Q, keys_K).to(device)
    return _Call(
        rows=slice(run.row_start - first, run.row_stop - first),
        keys=(*_stretches((later_G - first).tolist()), prefix),
        is_causal=square,
        mask_QK=mask_QK,
    )


def _select(x_BTHD: Tensor, stretches: tuple[slice, ...]) -> Tensor:
    """(1, H, K, D): the named stretches of a document's tokens."""
    parts = [x_BTHD[:, stretch] for stretch in stretches]
    return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).transpose(1, 2)


def _working_copy(x_BHTD: Tensor) -> Tensor:
    """In fp32 on a CPU, whose half-precision backward is two to five times slower on short documents."""
    return x_BHTD.float() if x_BHTD.is_cpu and x_BHTD.dtype.itemsize == 2 else x_BHTD


@dataclass(frozen=True)
class SdpaPlan:
    """Lengths of the documents and, for each, the calls that cover its rows in order."""

    lengths: list[int]
    calls: list[list[_Call]]

    @classmethod
    def build(cls, visibility: Visibility, device: torch.device) -> SdpaPlan:
        """Decompose on the CPU; the masks end on ``device``."""
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
        """One kernel call per planned call; see :func:`showo_kernels.attend`."""
        if not self.lengths:
            return torch.zeros_like(query_BHTD)
        grouped = query_BHTD.shape[1] != key_BHTD.shape[1]
        # One split each, whose backward is one concatenation; slices then cost a document's size.
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
