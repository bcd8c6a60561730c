"""``flash`` backend: one packed row in two variable-length FlashAttention calls, without a mask.

The row is cut into runs (see :mod:`showo_kernels.runs`). One call computes all causal runs, aligned to the
bottom right of their keys; the other all full runs. Only visible pairs are computed (apart from the edges of
the kernel's tiles). Queries stay where they are: the runs of the other kind are sequences without keys in a
call. Keys stay as well, with the tokens between two runs' keys as sequences without queries, unless a token
is a key of two runs of one kind (a global span, or two bidirectional spans in a document): then keys and
values are gathered first.

What a kernel writes for rows without keys and for keys without rows is not relied on: each row is taken from
its own call, and gradients of such keys are set to 0.

Letters: T tokens of the row, Q query rows and K keys of a call, S sequences of a call, C copied rows of a
gather, H heads, D head width, N calls.
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
    """A gather of C rows out of T in which every row is copied at least once, and its transpose.

    The transpose is a gather as well: a row's sum is its first copy, plus the further copies. It is as fast,
    and unlike torch's own, which uses atomic additions in the gradient's dtype, the same every time.

    Attributes:
        index_C: the row that each output row is a copy of.
        first_T: for every row, the output row that is its first copy.
        again: for the second, third, … copy: the rows that have one, and the output rows that are it.
            The rows of later passes are counted within those of the first.
    """

    index_C: Tensor
    first_T: Tensor
    again: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def build(cls, index_C: Tensor) -> Gather:
        """Find the copies of every row, on the CPU."""
        order_C = index_C.argsort(stable=True)  # the copies of row 0, then those of row 1, …
        copies_T = index_C.bincount()
        first_T = copies_T.cumsum(0) - copies_T
        assert bool((copies_T > 0).all()), "a row that is not gathered would get no gradient"
        again = []
        place_T = (copies_T > 1).cumsum(0) - 1
        for copy in range(1, int(copies_T.max()) if copies_T.numel() else 0):
            rows = (copies_T > copy).nonzero().squeeze(1)
            again.append((rows if copy == 1 else place_T[rows], order_C[first_T[rows] + copy]))
        return cls(index_C, order_C[first_T], tuple(again))

    def __call__(self, x_THD: Tensor) -> Tensor:
        """Return the gathered rows (C, H, D)."""
        return x_THD.index_select(0, self.index_C)

    def transpose(self, grad_CHD: Tensor) -> Tensor:
        """Add the copies of every row (T, H, D); more than two of half precision are added in fp32."""
        grad_THD = grad_CHD.index_select(0, self.first_T)
        if len(self.again) == 1:
            # A row occurs once per pass, so additions cannot collide; one addition is rounded once anyway.
            rows, copies = self.again[0]
            return grad_THD.index_add_(0, rows, grad_CHD.index_select(0, copies))
        if self.again:
            accurate = torch.promote_types(grad_CHD.dtype, torch.float32)
            rows, copies = self.again[0]
            sum_RHD = grad_THD.index_select(0, rows).to(accurate)
            sum_RHD += grad_CHD.index_select(0, copies)
            for places, copies in self.again[1:]:
                sum_RHD.index_add_(0, places, grad_CHD.index_select(0, copies).to(accurate))
            grad_THD.index_copy_(0, rows.long(), sum_RHD.to(grad_CHD.dtype))
        return grad_THD

    def tensors(self) -> list[Tensor]:
        """All index tensors, in the order of :meth:`of`."""
        return [self.index_C, self.first_T, *(x for pair in self.again for x in pair)]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> Gather:
        """Build from :meth:`tensors`."""
        index_C, first_T, *rest = tensors
        return cls(index_C, first_T, tuple(zip(rest[::2], rest[1::2], strict=True)))


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
    return index_K, global_length_R + prefix_length_R


def _call(rows_S: Tensor, keys_S: Tensor, causal: bool) -> VarlenCall:
    """Return the call of sequences of these lengths."""
    return VarlenCall(
        cu_rows_S=_boundaries(rows_S),
        cu_keys_S=_boundaries(keys_S),
        max_rows=int(rows_S.max()),
        max_keys=int(keys_S.max()),
        keys=int(keys_S.sum()),
        causal=causal,
    )


def _in_place(runs: Runs, chosen_R: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
    """Lengths of the sequences of a call whose rows and keys are the row itself; None if keys overlap."""
    start_S, stop_S = runs.key_start_R[chosen_R], runs.key_stop_R[chosen_R]
    if runs.global_G.numel() or bool((start_S[1:] < stop_S[:-1]).any()):
        return None
    keys_R = torch.where(chosen_R, runs.key_stop_R - runs.key_start_R, 0)
    before_R = torch.zeros_like(keys_R)
    before_R[chosen_R] = start_S - torch.cat([start_S.new_zeros(1), stop_S])[:-1]
    behind = torch.tensor([size - int(stop_S[-1])])
    # A sequence of the keys that no chosen run has, before each run; the last one is behind all runs.
    rows_R = runs.row_stop_R - runs.row_start_R
    rows_S = torch.cat([torch.stack([torch.zeros_like(rows_R), rows_R], 1).flatten(), behind * 0])
    keys_S = torch.cat([torch.stack([before_R, keys_R], 1).flatten(), behind])
    used_S = (rows_S > 0) | (keys_S > 0)
    return rows_S[used_S], keys_S[used_S]


def _keys_without_rows(call: VarlenCall) -> Tensor:
    """Indices of the keys of a call's sequences that have no rows: int32."""
    rows_S, keys_S = call.cu_rows_S.diff(), call.cu_keys_S.diff()
    return _ragged(call.cu_keys_S[:-1].long(), torch.where(rows_S == 0, keys_S, 0).long()).int()


@dataclass(frozen=True)
class FlashPlan:
    """The calls of one packed row.

    Attributes:
        tokens: T.
        calls: one per kind of run.
        idle_keys: for each call, int64: the keys that none of its rows attends to.
        first_T: bool, whether a row belongs to the first call; None where there is one call.
        gather: of keys and values; None where they stay in place.
        varlen: the kernel; None: the one that is installed (bf16 and fp16 on a GPU).
    """

    tokens: int
    calls: tuple[VarlenCall, ...]
    idle_keys: tuple[Tensor, ...]
    first_T: Tensor | None
    gather: Gather | None = None
    varlen: Varlen | None = None

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
        runs, size = find_runs(visibility), len(visibility)
        kinds = [causal for causal in (True, False) if bool((runs.causal_R == causal).any())]
        placed = [_in_place(runs, runs.causal_R == causal, size) for causal in kinds]
        rows_R = runs.row_stop_R - runs.row_start_R
        gather = None
        if any(lengths is None for lengths in placed):
            found = [_keys_of(runs, runs.causal_R == causal) for causal in kinds]
            gather = Gather.build(torch.cat([index_K for index_K, _ in found]))
            placed = [(rows_R, keys_R) for _, keys_R in found]
        calls = [_call(*lengths, c) for lengths, c in zip(placed, kinds, strict=True) if lengths]
        first_T = (runs.causal_R == kinds[0]).repeat_interleave(rows_R) if len(kinds) > 1 else None
        idle_keys = tuple(map(_keys_without_rows, calls))
        return cls(size, tuple(calls), idle_keys, first_T, gather, varlen).to(device)

    def to(self, device: torch.device) -> FlashPlan:
        """Return the plan on ``device``, with one copy."""
        calls = [x for call in self.calls for x in (call.cu_rows_S, call.cu_keys_S)]
        first = [] if self.first_T is None else [self.first_T]
        gather = self.gather.tensors() if self.gather else []
        there = iter(moved([*calls, *self.idle_keys, *first, *gather], device))
        return replace(
            self,
            calls=tuple(
                replace(call, cu_rows_S=next(there), cu_keys_S=next(there)) for call in self.calls
            ),
            idle_keys=tuple(next(there).long() for _ in self.idle_keys),
            first_T=next(there).bool() if first else None,
            gather=Gather.of(list(there)) if gather else None,
        )

    def __len__(self) -> int:
        return self.tokens

    @property
    def sums(self) -> int:
        """N; see :class:`showo_kernels.planned.OperatorPlan`."""
        return len(self.calls)

    def _kernel(self, query: Tensor) -> Varlen:
        return self.varlen or installed_varlen(query.dtype)

    def _keys(self, x_THD: Tensor) -> list[Tensor]:
        """Return the keys (or values) of each call."""
        if self.gather is None:
            return [x_THD] * len(self.calls)
        return list(self.gather(x_THD).split([call.keys for call in self.calls]))

    def _own_rows(self, parts: list[Tensor]) -> Tensor:
        """Take each row (T, H, D) from its own call."""
        if self.first_T is None:
            return parts[0]
        first_THD, second_THD = parts
        return torch.where(self.first_T[:, None, None], first_THD, second_THD)

    def _key_grads(self, parts: list[Tensor]) -> Tensor:
        """Combine the gradients of each call's keys or values: (T, H, D)."""
        for part_KHD, idle in zip(parts, self.idle_keys, strict=True):
            if len(idle):
                part_KHD.index_fill_(0, idle, 0)
        if self.gather is not None:
            return self.gather.transpose(torch.cat(parts))
        return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])

    def run(
        self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Compute output and log-sum-exps; see :class:`showo_kernels.planned.OperatorPlan`."""
        kernel = self._kernel(q_THD)
        pieces = zip(self._keys(k_THD), self._keys(v_THD), self.calls, strict=True)
        found = [kernel.forward(q_THD, k, v, call, scale) for k, v, call in pieces]
        return self._own_rows([out for out, _ in found]), torch.stack([sums for _, sums in found])

    def run_backward(
        self,
        grad_THD: Tensor,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        out_THD: Tensor,
        sums_NHT: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients; see :class:`showo_kernels.planned.OperatorPlan`."""
        kernel = self._kernel(q_THD)
        pieces = zip(self._keys(k_THD), self._keys(v_THD), sums_NHT, self.calls, strict=True)
        # For the rows of another call, the output belongs to other keys; they have none here.
        grads = [
            kernel.backward(grad_THD, q_THD, k, v, out_THD, sums_HT, call, scale)
            for k, v, sums_HT, call in pieces
        ]
        dq, dk, dv = ([grad[i] for grad in grads] for i in range(3))
        return self._own_rows(dq), self._key_grads(dk), self._key_grads(dv)

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention in at most two kernel calls; see :func:`showo_kernels.attend`."""
        return PlannedAttention.of(query_BHTD, key_BHTD, value_BHTD, self, scale)
