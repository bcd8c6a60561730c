"""Row gathers whose backward is a gather too: fast, and the same result every time.

``flash`` backend: the runs of a visibility in two variable-length FlashAttention calls.

One call holds all causal runs, aligned to the bottom right of their keys; one holds all full
runs. Nothing is masked, so only visible pairs are computed (whole tiles aside).
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
class Gather:
    """A gather of K rows out of T of which every one is used at least once.

    Attributes:
        index_K: the row each output row is a copy of.
        first_T: for every row, where its first copy is.
        again: for the second, third, ... copies: the rows that have one, and where it is.
    """

    index_K: Tensor
    first_T: Tensor
    again: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def build(cls, index_K: Tensor, device: torch.device) -> Gather:
        """Find every row's copies, on the CPU; the result is on ``device``."""
        order_K = index_K.argsort(stable=True)
        copies_T = index_K.bincount()
        first_T = copies_T.cumsum(0) - copies_T
        assert bool((copies_T > 0).all()), "a row that nobody gathers would get no gradient"
        again = []
        for copy in range(1, int(copies_T.max()) if copies_T.numel() else 0):
            rows = (copies_T > copy).nonzero().squeeze(1)
            again.append((rows.to(device), order_K[first_T[rows] + copy].to(device)))
        return cls(index_K.to(device), order_K[first_T].to(device), tuple(again))

    def __call__(self, x_THD: Tensor) -> Tensor:
        """The gathered rows (K, H, D), differentiable."""
        return _GatherRows.apply(x_THD, self)


class _GatherRows(torch.autograd.Function):
    """``index_select`` whose backward adds up copies in a fixed order, in fp32 or better.

    The library's own backward uses atomic additions in the gradient's dtype on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return x_THD.index_select(0, gather.index_K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_KHD: Tensor) -> tuple[Tensor, None]:
        gather: Gather = ctx.gather
        grad_THD = grad_KHD.index_select(0, gather.first_T)
        if gather.again:
            grad_THD = grad_THD.to(torch.promote_types(grad_KHD.dtype, torch.float32))
        for rows, copies in gather.again:
            # No row is named twice here, so the additions cannot collide.
            grad_THD.index_add_(0, rows, grad_KHD.index_select(0, copies).to(grad_THD.dtype))
        return grad_THD.to(grad_KHD.dtype), None


@dataclass(frozen=True)
class VarlenCall:
    """The sequences of one call, back to back: sequence i is rows ``cu[i]:cu[i + 1]``.

    Attributes:
        cu_rows_S, cu_keys_S: int32 boundaries of the queries and of the keys.
        max_rows, max_keys: longest sequence.
        rows, keys: totals.
        causal: row r of n sees all but the last n - 1 - r keys of its sequence.
    """

    cu_rows_S: Tensor
    cu_keys_S: Tensor
    max_rows: int
    max_keys: int
    rows: int
    keys: int
    causal: bool


# (query (rows, H, D), key and value (keys, H or a divisor, D), call, scale) -> (rows, H, D)
VarlenFunction = Callable[[Tensor, Tensor, Tensor, VarlenCall, float], Tensor]


def _torch_varlen() -> VarlenFunction | None:
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
        # torch 2.10 says is_causal, later versions name a window of (left, right) neighbours.
        if "is_causal" in accepted:
            options["is_causal"] = call.causal
        else:
            options["window_size"] = (-1, 0) if call.causal else (-1, -1)
        if "scale" in accepted:
            options["scale"] = scale
        else:
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
    """The variable-length kernel of this installation and its name; torch's own comes first."""
    for name, load in (("torch varlen_attn", _torch_varlen), ("flash_attn", _package_varlen)):
        function = load()
        if function is not None:
            return name, function
    return None


def _installed_varlen(
    q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
) -> Tensor:
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


def _ragged(start_S: Tensor, length_S: Tensor) -> Tensor:
    """``start_S[0], start_S[0] + 1, ...`` for ``length_S[0]`` places, then the next sequence."""
    before_S = length_S.cumsum(0) - length_S
    index = torch.arange(int(length_S.sum()))
    return index + torch.repeat_interleave(start_S - before_S, length_S)


def _boundaries(length_S: Tensor) -> Tensor:
    return torch.nn.functional.pad(length_S.cumsum(0), (1, 0)).int()


def _keys_of(runs: Runs, chosen_S: Tensor) -> tuple[Tensor, Tensor]:
    """Key places of the chosen runs, later global keys first, and the number per run."""
    global_length_S = (runs.global_stop_R - runs.global_start_R)[chosen_S]
    prefix_length_S = (runs.key_stop_R - runs.key_start_R)[chosen_S]
    # Two stretches per run, interleaved: a slice of the global tokens, then the prefix. Both are
    # looked up in one table: the global tokens' places, followed by all places in order.
    places = torch.cat([runs.global_G, torch.arange(int(runs.row_stop_R.max()))])
    start_S2 = torch.stack(
        [runs.global_start_R[chosen_S], runs.key_start_R[chosen_S] + runs.global_G.numel()], dim=1
    )
    length_S2 = torch.stack([global_length_S, prefix_length_S], dim=1)
    index_K = places[_ragged(start_S2.flatten(), length_S2.flatten())]
    return index_K, global_length_S + prefix_length_S


def _varlen_call(
    runs: Runs, causal: bool, device: torch.device
) -> tuple[VarlenCall, Tensor, Tensor]:
    """All runs of one kind, with the places of their rows and of their keys."""
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
    """Gathers that lay rows and keys out for the calls, and back; built once per micro-batch."""

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
        """Plan on the CPU; the tensors end on ``device``.

        Args:
            visibility: the packed row, at least one token.
            device: where attention will run.
            varlen: the kernel; by default the installed one (bf16 and fp16 on a GPU).
        """
        runs = find_runs(visibility)
        parts = [_varlen_call(runs, causal, device) for causal in (True, False)]
        parts = [part for part in parts if part[0].rows]
        row_index_T = torch.cat([rows for _, rows, _ in parts])
        return cls(
            calls=tuple(call for call, _, _ in parts),
            take_rows=Gather.build(row_index_T, device),
            take_keys=Gather.build(torch.cat([keys for _, _, keys in parts]), device),
            restore_rows=Gather.build(row_index_T.argsort(), device),
            varlen=varlen,
        )

    def __len__(self) -> int:
        return self.take_rows.index_K.numel()

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Two kernel calls; see :func:`showo_kernels.attend`."""
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
