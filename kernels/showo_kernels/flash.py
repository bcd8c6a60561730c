"""``flash`` backend: one packed row in two variable-length FlashAttention calls, without a mask.

The row is cut into runs (see :mod:`showo_kernels.runs`). One call takes all causal runs, aligned to the
bottom right of their keys; the other takes all full runs. Only visible pairs are computed (apart from the
edges of the kernel's tiles). A token may be a key of several runs, so rows and keys are gathered first.

Letters: T tokens of the row, Q query rows of a call, K keys of a call, S runs of one call, C copied rows
of a gather, H heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from showo_kernels.runs import Runs, find_runs
from showo_kernels.visibility import Visibility


@dataclass(frozen=True)
class VarlenCall:
    """The S runs of one call, end to end: run i has the query rows ``cu_rows[i]:cu_rows[i + 1]``.

    Attributes:
        cu_rows_S, cu_keys_S: int32 boundaries of the runs' query rows and keys, S + 1 each.
        max_rows, max_keys: of the longest run.
        rows, keys: totals.
        causal: row r of n attends to all but the last n - 1 - r keys of its run.
    """

    cu_rows_S: Tensor
    cu_keys_S: Tensor
    max_rows: int
    max_keys: int
    rows: int
    keys: int
    causal: bool


# (query (Q, H, D), key and value (K, H or a divisor, D), call, scale) -> (Q, H, D)
VarlenFunction = Callable[[Tensor, Tensor, Tensor, VarlenCall, float], Tensor]


def _torch_varlen() -> VarlenFunction | None:
    """Return torch's ``varlen_attn`` behind our signature; None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Callable[..., Any] = varlen_attn
    accepted = inspect.signature(varlen_attn).parameters

    def attend(
        q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
    ) -> Tensor:
        options: dict[str, Any] = {}
        # torch 2.10 has is_causal; later versions take a window of (left, right) neighbours instead.
        if "is_causal" in accepted:
            options["is_causal"] = call.causal
        else:
            options["window_size"] = (-1, 0) if call.causal else (-1, -1)
        if "scale" in accepted:
            options["scale"] = scale
        else:  # the kernel itself scales by D ** -0.5
            q_QHD = q_QHD * (scale * q_QHD.shape[-1] ** 0.5)
        groups = q_QHD.shape[1] // k_KHD.shape[1]
        if groups > 1 and "enable_gqa" in accepted:
            options["enable_gqa"] = True
        elif groups > 1:
            k_KHD, v_KHD = (x.repeat_interleave(groups, dim=1) for x in (k_KHD, v_KHD))
        return kernel(
            q_QHD,
            k_KHD,
            v_KHD,
            call.cu_rows_S,
            call.cu_keys_S,
            call.max_rows,
            call.max_keys,
            **options,
        )

    return attend


def _package_varlen() -> VarlenFunction | None:
    """Return the ``flash_attn`` package's kernel behind our signature; None where it is not installed."""
    if find_spec("flash_attn") is None:
        return None
    from flash_attn import flash_attn_varlen_func

    def attend(
        q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
    ) -> Tensor:
        return flash_attn_varlen_func(
            q_QHD,
            k_KHD,
            v_KHD,
            cu_seqlens_q=call.cu_rows_S,
            cu_seqlens_k=call.cu_keys_S,
            max_seqlen_q=call.max_rows,
            max_seqlen_k=call.max_keys,
            softmax_scale=scale,
            causal=call.causal,
        )

    return attend


@cache
def find_varlen() -> tuple[str, VarlenFunction] | None:
    """Return the name and function of the installed kernel, torch's own first; None if there is none."""
    for name, load in (("torch varlen_attn", _torch_varlen), ("flash_attn", _package_varlen)):
        function = load()
        if function is not None:
            return name, function
    return None


def _installed_varlen(
    q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
) -> Tensor:
    """Call the installed kernel; a ValueError names what to change where it cannot run."""
    if q_QHD.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"attention backend flash computes in bfloat16 or float16, not {q_QHD.dtype}: "
            "choose flex, or train in mixed precision"
        )
    found = find_varlen()
    if found is None:
        raise ValueError(
            "attention backend flash: neither torch's varlen_attn nor flash_attn found"
        )
    return found[1](q_QHD, k_KHD, v_KHD, call, scale)


@dataclass(frozen=True)
class Gather:
    """A gather of C rows out of T in which every row is copied at least once.

    Its backward is a gather as well: a row's gradient is that of its first copy, plus those of the further
    copies. It is as fast as the forward gather, and the result is the same every time.

    Attributes:
        index_C: the row that each output row is a copy of.
        first_T: for every row, the output row that is its first copy.
        again: for the second, third, … copy: the rows that have one, and the output rows that are it.
    """

    index_C: Tensor
    first_T: Tensor
    again: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def build(cls, index_C: Tensor, device: torch.device) -> Gather:
        """Find the copies of every row, on the CPU; the result is on ``device``."""
        order_C = index_C.argsort(stable=True)  # the copies of row 0, then those of row 1, …
        copies_T = index_C.bincount()
        first_T = copies_T.cumsum(0) - copies_T
        assert bool((copies_T > 0).all()), "a row that is not gathered would get no gradient"
        again = []
        for copy in range(1, int(copies_T.max()) if copies_T.numel() else 0):
            rows = (copies_T > copy).nonzero().squeeze(1)
            again.append((rows.to(device), order_C[first_T[rows] + copy].to(device)))
        return cls(index_C.to(device), order_C[first_T].to(device), tuple(again))

    def __call__(self, x_THD: Tensor) -> Tensor:
        """Return the gathered rows (C, H, D), differentiable."""
        return _GatherRows.apply(x_THD, self)


class _GatherRows(torch.autograd.Function):
    """``index_select`` whose backward adds the copies in a fixed order, in fp32 or better.

    On a GPU, torch's own backward uses atomic additions in the gradient's dtype: another order and so
    another rounding in every run.
    """

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return x_THD.index_select(0, gather.index_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_CHD: Tensor) -> tuple[Tensor, None]:
        gather: Gather = ctx.gather
        grad_THD = grad_CHD.index_select(0, gather.first_T)
        if gather.again:
            grad_THD = grad_THD.to(torch.promote_types(grad_CHD.dtype, torch.float32))
        for rows, copies in gather.again:
            # A row occurs once per pass, so the additions cannot collide.
            grad_THD.index_add_(0, rows, grad_CHD.index_select(0, copies).to(grad_THD.dtype))
        return grad_THD.to(grad_CHD.dtype), None


def _ragged(start_S: Tensor, length_S: Tensor) -> Tensor:
    """Concatenate the ranges ``start_S[i], start_S[i] + 1, …`` of ``length_S[i]`` numbers each."""
    before_S = length_S.cumsum(0) - length_S
    index = torch.arange(int(length_S.sum()))
    return index + torch.repeat_interleave(start_S - before_S, length_S)


def _boundaries(length_S: Tensor) -> Tensor:
    """0 and the running totals of the lengths: int32 (S + 1)."""
    return torch.nn.functional.pad(length_S.cumsum(0), (1, 0)).int()


def _keys_of(runs: Runs, chosen_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens that are keys of the chosen runs, later global tokens first, and the keys per run."""
    global_length_S = (runs.global_stop_R - runs.global_start_R)[chosen_S]
    prefix_length_S = (runs.key_stop_R - runs.key_start_R)[chosen_S]
    # Each run has two ranges: a slice of the list of global tokens, then its prefix of the document. One
    # table serves both: first the global tokens' indices, then the indices of all tokens in order.
    table = torch.cat([runs.global_G, torch.arange(int(runs.row_stop_R.max()))])
    start_S2 = torch.stack(
        [runs.global_start_R[chosen_S], runs.key_start_R[chosen_S] + runs.global_G.numel()], dim=1
    )
    length_S2 = torch.stack([global_length_S, prefix_length_S], dim=1)
    index_K = table[_ragged(start_S2.flatten(), length_S2.flatten())]
    return index_K, global_length_S + prefix_length_S


def _varlen_call(
    runs: Runs, causal: bool, device: torch.device
) -> tuple[VarlenCall, Tensor, Tensor]:
    """Return the call for all runs of one kind, and the tokens that are its query rows and its keys."""
    chosen_S = (runs.causal_R == causal).nonzero().squeeze(1)
    rows_S = (runs.row_stop_R - runs.row_start_R)[chosen_S]
    row_index = _ragged(runs.row_start_R[chosen_S], rows_S)
    key_index, keys_S = _keys_of(runs, chosen_S)
    call = VarlenCall(
        cu_rows_S=_boundaries(rows_S).to(device),
        cu_keys_S=_boundaries(keys_S).to(device),
        max_rows=int(rows_S.max()) if rows_S.numel() else 0,
        max_keys=int(keys_S.max()) if keys_S.numel() else 0,
        rows=row_index.numel(),
        keys=key_index.numel(),
        causal=causal,
    )
    return call, row_index, key_index


@dataclass(frozen=True)
class FlashPlan:
    """The calls of one packed row, and the gathers from the row into the calls' order and back."""

    calls: tuple[VarlenCall, ...]
    take_rows: Gather
    take_keys: Gather
    restore_rows: Gather
    varlen: VarlenFunction

    @classmethod
    def build(
        cls,
        visibility: Visibility,
        device: torch.device,
        varlen: VarlenFunction = _installed_varlen,
    ) -> FlashPlan:
        """Plan on the CPU, then copy the plan to ``device``.

        Args:
            visibility: of the packed row, at least one token.
            device: where attention will run.
            varlen: the kernel; by default the installed one (bf16 and fp16 on a GPU).
        """
        runs = find_runs(visibility)
        parts = [_varlen_call(runs, causal, device) for causal in (True, False)]
        parts = [part for part in parts if part[0].rows]  # no call for a kind without runs
        row_index_T = torch.cat([rows for _, rows, _ in parts])
        return cls(
            calls=tuple(call for call, _, _ in parts),
            take_rows=Gather.build(row_index_T, device),
            take_keys=Gather.build(torch.cat([keys for _, _, keys in parts]), device),
            # The runs cover every row once, so row_index is a permutation and its argsort the inverse.
            restore_rows=Gather.build(row_index_T.argsort(), device),
            varlen=varlen,
        )

    def __len__(self) -> int:
        return self.take_rows.index_C.numel()

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention in at most two kernel calls; see :func:`showo_kernels.attend`."""
        # Variable-length kernels have tokens as the first dimension.
        query_THD, key_THD, value_THD = (
            x_BHTD[0].transpose(0, 1) for x_BHTD in (query_BHTD, key_BHTD, value_BHTD)
        )
        rows = [call.rows for call in self.calls]
        keys = [call.keys for call in self.calls]
        pieces = zip(
            self.take_rows(query_THD).split(rows),
            self.take_keys(key_THD).split(keys),
            self.take_keys(value_THD).split(keys),
            self.calls,
            strict=True,
        )
        outputs = [self.varlen(q, k, v, call, scale) for q, k, v, call in pieces]
        return self.restore_rows(torch.cat(outputs)).transpose(0, 1)[None]
