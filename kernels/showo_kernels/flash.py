"""``flash`` backend: one packed row in a few variable-length FlashAttention calls, without a mask.

The row is cut into runs (see :mod:`showo_kernels.runs`), causal and full ones. Only visible pairs are
computed (apart from the edges of the kernel's tiles). Of each kind, the largest run of every document that
has no later global keys is computed in place: queries, keys and values stay where they are, and what belongs
to other runs is sequences without keys, or without queries. The other runs are gathered, with their keys,
into one more call per kind; without global spans and with one bidirectional span per document there are none.

What a kernel writes for rows without keys and for keys without rows is not relied on: each row is taken from
its own call, and gradients of such keys are set to 0.

Letters: T tokens of the row, Q query rows and K keys of a call, S sequences of a call, R runs, C copied rows
of a gather, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from showo_kernels.planned import PlannedAttention
from showo_kernels.runs import Runs, find_runs
from showo_kernels.transfer import moved
from showo_kernels.varlen import Varlen, VarlenCall, installed_varlen
from showo_kernels.visibility import Visibility


@dataclass(frozen=True)
class Gather:
    """A gather of C rows out of T, and the addition of such rows to those that they are copies of.

    The addition takes one pass per copy of a row, so nothing collides. Unlike torch's own, which uses atomic
    additions in the gradient's dtype, it gives the same bits every time.

    Attributes:
        index_C: the row that each output row is a copy of.
        passes: for the first, second, … copy: the rows that have one, and the output rows that are it. The
            rows of later passes are counted within those of the first.
    """

    index_C: Tensor
    passes: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def build(cls, index_C: Tensor) -> Gather:
        """Find the copies of every row, on the CPU."""
        order_C = index_C.argsort(stable=True)  # the copies of row 0, then those of row 1, …
        copies_T = index_C.bincount()
        first_T = copies_T.cumsum(0) - copies_T
        place_T = (copies_T > 0).cumsum(0) - 1
        passes = []
        for copy in range(int(copies_T.max())):
            rows = (copies_T > copy).nonzero().squeeze(1)
            passes.append((place_T[rows] if copy else rows, order_C[first_T[rows] + copy]))
        return cls(index_C, tuple(passes))

    def __call__(self, x_THD: Tensor) -> Tensor:
        """Return the gathered rows (C, H, D)."""
        return x_THD.index_select(0, self.index_C)

    def add_to(self, total_THD: Tensor, grad_CHD: Tensor) -> None:
        """Add all copies to their rows, in place; several of half precision are added in fp32."""
        rows, copies = self.passes[0]
        if len(self.passes) == 1:
            total_THD.index_add_(0, rows, grad_CHD.index_select(0, copies))
            return
        accurate = torch.promote_types(grad_CHD.dtype, torch.float32)
        sum_RHD = total_THD.index_select(0, rows).to(accurate)
        sum_RHD += grad_CHD.index_select(0, copies)
        for places, copies in self.passes[1:]:
            sum_RHD.index_add_(0, places, grad_CHD.index_select(0, copies).to(accurate))
        total_THD.index_copy_(0, rows, sum_RHD.to(grad_CHD.dtype))

    def tensors(self) -> list[Tensor]:
        """All index tensors, in the order of :meth:`of`."""
        return [self.index_C, *(x for pair in self.passes for x in pair)]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> Gather:
        """Build from :meth:`tensors`."""
        index_C, *rest = tensors
        return cls(index_C, tuple(zip(rest[::2], rest[1::2], strict=True)))


def _ragged(start_S: Tensor, length_S: Tensor) -> Tensor:
    """Concatenate the ranges ``start_S[i], start_S[i] + 1, …`` of ``length_S[i]`` numbers each."""
    before_S = length_S.cumsum(0) - length_S
    index = torch.arange(int(length_S.sum()))
    return index + torch.repeat_interleave(start_S - before_S, length_S)


def _boundaries(length_S: Tensor) -> Tensor:
    """0 and the running totals of the lengths: int32 (S + 1)."""
    return torch.nn.functional.pad(length_S.cumsum(0), (1, 0)).int()


def _keys_of(runs: Runs, chosen_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens that are keys of the chosen runs, later global tokens first, and the keys per run."""
    global_length_R = torch.where(chosen_R, runs.global_stop_R - runs.global_start_R, 0)
    prefix_length_R = torch.where(chosen_R, runs.key_stop_R - runs.key_start_R, 0)
    # Each run has two ranges: a slice of the list of global tokens, then its prefix of the document. One
    # table serves both: first the global tokens' indices, then the indices of all tokens in order.
    table = torch.cat([runs.global_G, torch.arange(int(runs.row_stop_R.max()))])
    start_R2 = torch.stack([runs.global_start_R, runs.key_start_R + runs.global_G.numel()], dim=1)
    length_R2 = torch.stack([global_length_R, prefix_length_R], dim=1)
    index_K = table[_ragged(start_R2.flatten(), length_R2.flatten())]
    return index_K, (global_length_R + prefix_length_R)[chosen_R]


def _call(rows_S: Tensor, keys_S: Tensor, causal: bool) -> VarlenCall:
    """Return the call of sequences of these lengths."""
    hidden_S = rows_S * (rows_S - 1) // 2 if causal else 0
    return VarlenCall(
        cu_rows_S=_boundaries(rows_S),
        cu_keys_S=_boundaries(keys_S),
        max_rows=int(rows_S.max()),
        max_keys=int(keys_S.max()),
        pairs=int(torch.where(keys_S > 0, rows_S * keys_S - hidden_S, 0).sum()),
        causal=causal,
    )


@dataclass(frozen=True)
class PlacedCall:
    """A call whose rows and keys are the row itself.

    Attributes:
        call: its sequences.
        idle: indices of the keys that none of its rows attends to.
    """

    call: VarlenCall
    idle: Tensor

    @classmethod
    def build(cls, runs: Runs, chosen_R: Tensor, causal: bool) -> PlacedCall:
        """From runs of one kind whose keys do not overlap."""
        start_S, stop_S = runs.key_start_R[chosen_R], runs.key_stop_R[chosen_R]
        keys_R = torch.where(chosen_R, runs.key_stop_R - runs.key_start_R, 0)
        before_R = torch.zeros_like(keys_R)
        before_R[chosen_R] = start_S - torch.cat([start_S.new_zeros(1), stop_S])[:-1]
        behind = runs.row_stop_R[-1:] - stop_S[-1:]
        # A sequence of the keys that no chosen run has, before each run; the last one is behind all runs.
        rows_R = runs.row_stop_R - runs.row_start_R
        pairs_R2 = torch.stack([torch.zeros_like(rows_R), rows_R], 1)
        rows_S = torch.cat([pairs_R2.flatten(), behind * 0])
        keys_S = torch.cat([torch.stack([before_R, keys_R], 1).flatten(), behind])
        idle = _ragged(keys_S.cumsum(0) - keys_S, torch.where(rows_S == 0, keys_S, 0))
        used_S = (rows_S > 0) | (keys_S > 0)
        return cls(_call(rows_S[used_S], keys_S[used_S], causal), idle)


@dataclass(frozen=True)
class GatheredCall:
    """A call whose rows and keys are gathered.

    Attributes:
        call: its sequences.
        rows_Q: indices of its rows.
        keys: gather of keys and values.
    """

    call: VarlenCall
    rows_Q: Tensor
    keys: Gather

    @classmethod
    def build(cls, runs: Runs, chosen_R: Tensor, causal: bool) -> GatheredCall:
        """From any runs of one kind."""
        index_K, keys_S = _keys_of(runs, chosen_R)
        start_S, stop_S = runs.row_start_R[chosen_R], runs.row_stop_R[chosen_R]
        rows_Q = _ragged(start_S, stop_S - start_S)
        return cls(_call(stop_S - start_S, keys_S, causal), rows_Q, Gather.build(index_K))


def _largest_of_documents(runs: Runs, chosen_R: Tensor) -> Tensor:
    """Of the chosen runs, keep the one of each document with the most rows and keys: bool (R,)."""
    size_R = runs.row_stop_R - runs.row_start_R + runs.key_stop_R - runs.key_start_R
    # Of two equal ones the later.
    score_R = torch.where(chosen_R, size_R * len(size_R) + torch.arange(len(size_R)), -1)
    _, document_R = torch.unique_consecutive(runs.key_start_R, return_inverse=True)
    best_R = torch.full_like(score_R, -1).scatter_reduce(0, document_R, score_R, "amax")
    return chosen_R & (score_R == best_R[document_R])


@dataclass(frozen=True)
class FlashPlan:
    """The calls of one packed row.

    Attributes:
        tokens: T.
        placed: one or two, of different kinds.
        gathered: the other calls.
        first_T: bool, whether a row belongs to the first placed call; None where there is one.
        varlen: the kernel; None: the one that is installed (bf16 and fp16 on a GPU).
    """

    tokens: int
    placed: tuple[PlacedCall, ...]
    gathered: tuple[GatheredCall, ...] = ()
    first_T: Tensor | None = None
    varlen: Varlen | None = None

    sums = 1

    @classmethod
    def build(
        cls, visibility: Visibility, device: torch.device, varlen: Varlen | None = None
    ) -> FlashPlan:
        """Plan on the CPU, then copy the plan to ``device``.

        Args:
            visibility: of the packed row, at least one token.
            device: where attention will run.
            varlen: see the class.
        """
        runs = find_runs(visibility)
        free_R = runs.global_start_R == runs.global_stop_R
        placed, gathered, firsts = [], [], []
        for causal in (True, False):
            kind_R = runs.causal_R == causal
            placed_R = _largest_of_documents(runs, kind_R & free_R)
            if placed_R.any():
                placed.append(PlacedCall.build(runs, placed_R, causal))
                firsts.append(placed_R.repeat_interleave(runs.row_stop_R - runs.row_start_R))
            if (kind_R & ~placed_R).any():
                gathered.append(GatheredCall.build(runs, kind_R & ~placed_R, causal))
        first_T = firsts[0] if len(firsts) > 1 else None
        plan = cls(len(visibility), tuple(placed), tuple(gathered), first_T, varlen)
        return plan.to(device)

    def to(self, device: torch.device) -> FlashPlan:
        """Return the plan on ``device``, with one copy."""
        calls = [part.call for part in self.placed] + [part.call for part in self.gathered]
        found = [
            *(x for call in calls for x in (call.cu_rows_S, call.cu_keys_S)),
            *(part.idle for part in self.placed),
            *(x for part in self.gathered for x in (part.rows_Q, *part.keys.tensors())),
            *([] if self.first_T is None else [self.first_T]),
        ]
        there = iter(moved(found, device))
        moved_calls = iter(
            [replace(call, cu_rows_S=next(there), cu_keys_S=next(there)) for call in calls]
        )
        placed = [PlacedCall(next(moved_calls), next(there).long()) for _ in self.placed]
        gathered = [
            GatheredCall(
                next(moved_calls),
                next(there).long(),
                Gather.of([next(there).long() for _ in part.keys.tensors()]),
            )
            for part in self.gathered
        ]
        first_T = None if self.first_T is None else next(there).bool()
        return replace(self, placed=tuple(placed), gathered=tuple(gathered), first_T=first_T)

    def __len__(self) -> int:
        return self.tokens

    def _kernel(self, query: Tensor) -> Varlen:
        return self.varlen or installed_varlen(query.dtype)

    def _own_rows(self, parts: list[Tensor]) -> Tensor:
        """Take each row (T, …) from its own placed call."""
        if self.first_T is None:
            return parts[0]
        first, second = parts
        return torch.where(self.first_T.view(-1, *[1] * (first.dim() - 1)), first, second)

    def _key_grads(self, parts: list[Tensor]) -> Tensor:
        """Add the gradients of the placed calls' keys or values: (T, H, D)."""
        for part_THD, call in zip(parts, self.placed, strict=True):
            if len(call.idle):
                part_THD.index_fill_(0, call.idle, 0)
        return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])

    def run(
        self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Compute output and log-sum-exps; see :class:`showo_kernels.planned.OperatorPlan`."""
        kernel = self._kernel(q_THD)
        found = [kernel.forward(q_THD, k_THD, v_THD, p.call, scale) for p in self.placed]
        out_THD = self._own_rows([out for out, _ in found])
        sums_HT = self._own_rows([sums.t() for _, sums in found]).t()
        for part in self.gathered:
            q_QHD = q_THD.index_select(0, part.rows_Q)
            keys = part.keys(k_THD), part.keys(v_THD)
            out_QHD, sums_HQ = kernel.forward(q_QHD, *keys, part.call, scale)
            out_THD.index_copy_(0, part.rows_Q, out_QHD)
            sums_HT.index_copy_(1, part.rows_Q, sums_HQ)
        return out_THD, sums_HT[None].contiguous()

    def run_backward(
        self,
        grad_THD: Tensor,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        out_THD: Tensor,
        sums_SHT: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients; see :class:`showo_kernels.planned.OperatorPlan`."""
        kernel = self._kernel(q_THD)
        # A placed call gets all rows; those of other calls have no keys in it.
        rows, sums_HT = (grad_THD, q_THD, k_THD, v_THD, out_THD), sums_SHT[0]
        found = [kernel.backward(*rows, sums_HT, p.call, scale) for p in self.placed]
        dq, dk, dv = (list(parts) for parts in zip(*found, strict=True))
        dq_THD, dk_THD, dv_THD = self._own_rows(dq), self._key_grads(dk), self._key_grads(dv)
        for part in self.gathered:
            grad_QHD, q_QHD, out_QHD = (
                x.index_select(0, part.rows_Q) for x in (grad_THD, q_THD, out_THD)
            )
            keys = part.keys(k_THD), part.keys(v_THD)
            sums_HQ = sums_HT.index_select(1, part.rows_Q)
            dq_QHD, dk_KHD, dv_KHD = kernel.backward(
                grad_QHD, q_QHD, *keys, out_QHD, sums_HQ, part.call, scale
            )
            dq_THD.index_copy_(0, part.rows_Q, dq_QHD)
            part.keys.add_to(dk_THD, dk_KHD)
            part.keys.add_to(dv_THD, dv_KHD)
        return dq_THD, dk_THD, dv_THD

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention in a few kernel calls; see :func:`showo_kernels.attend`."""
        return PlannedAttention.of(query_BHTD, key_BHTD, value_BHTD, self, scale)
