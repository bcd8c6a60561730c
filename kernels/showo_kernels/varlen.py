"""Variable-length FlashAttention: sequences end to end, each attending to its own keys.

Letters: Q query rows and K keys of a call, S sequences of a call, H heads, D head width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import attention as torch_attention

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VarlenCall:
    """S sequences end to end: sequence i has the query rows ``cu_rows[i]:cu_rows[i + 1]``.

    Attributes:
        cu_rows_S, cu_keys_S: int32 boundaries of the sequences' query rows and keys, S + 1 each.
        max_rows, max_keys: of the longest sequence.
        pairs: (query, key) pairs that are computed, per head.
        causal: row r of n attends to all but the last n - 1 - r keys of its sequence.
    """

    cu_rows_S: Tensor
    cu_keys_S: Tensor
    max_rows: int
    max_keys: int
    pairs: int
    causal: bool


class Varlen(Protocol):
    """A variable-length kernel; H of key and value may be a divisor of the query's."""

    def forward(
        self, q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Compute the output (Q, H, D) and the fp32 log-sum-exps (H, Q); undefined for rows without keys."""

    def backward(
        self,
        grad_QHD: Tensor,
        q_QHD: Tensor,
        k_KHD: Tensor,
        v_KHD: Tensor,
        out_QHD: Tensor,
        sums_HQ: Tensor,
        call: VarlenCall,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients; undefined for rows without keys and for keys without rows."""


class TorchVarlen:
    """torch's own FlashAttention: the two operators behind its ``varlen_attn``.

    Only they give forward and backward apart from each other, and only they follow
    ``activate_flash_attention_impl``.
    """

    def forward(
        self, q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Varlen.forward`."""
        out_QHD, sums_HQ, *_ = torch.ops.aten._flash_attention_forward(
            *(q_QHD, k_KHD, v_KHD, call.cu_rows_S, call.cu_keys_S, call.max_rows, call.max_keys),
            *(0.0, call.causal, False),  # no dropout, no debugging output
            scale=scale,
        )
        return out_QHD, sums_HQ

    def backward(
        self,
        grad_QHD: Tensor,
        q_QHD: Tensor,
        k_KHD: Tensor,
        v_KHD: Tensor,
        out_QHD: Tensor,
        sums_HQ: Tensor,
        call: VarlenCall,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`Varlen.backward`."""
        # The state of a random generator that only dropout reads.
        rng = torch.zeros(2, dtype=torch.uint64, device=q_QHD.device)
        with warnings_as_errors():
            return torch.ops.aten._flash_attention_backward(
                *(grad_QHD, q_QHD, k_KHD, v_KHD, out_QHD, sums_HQ, call.cu_rows_S, call.cu_keys_S),
                *(call.max_rows, call.max_keys, 0.0, call.causal, rng, rng.new_empty(0)),
                scale=scale,
            )


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    """Where torch's deterministic algorithms are on, let them raise errors instead of warnings.

    Where it would only warn, torch's FlashAttention adds in any order (``_flash_attention_backward`` in
    attention_backward.cu).
    """
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if not (torch.are_deterministic_algorithms_enabled() and warn_only):
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


class PackageVarlen:
    """The ``flash_attn`` package, version 2.7 or later, for a torch that was built without FlashAttention."""

    def forward(
        self, q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Varlen.forward`."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        out_QHD, sums_HQ, *_ = _flash_attn_varlen_forward(
            *(q_QHD, k_KHD, v_KHD), **_package_settings(call, scale)
        )
        return out_QHD, sums_HQ

    def backward(
        self,
        grad_QHD: Tensor,
        q_QHD: Tensor,
        k_KHD: Tensor,
        v_KHD: Tensor,
        out_QHD: Tensor,
        sums_HQ: Tensor,
        call: VarlenCall,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`Varlen.backward`."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        dq_QHD, dk_KHD, dv_KHD = (
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in (q_QHD, k_KHD, v_KHD)
        )
        _flash_attn_varlen_backward(
            *(grad_QHD, q_QHD, k_KHD, v_KHD, out_QHD, sums_HQ, dq_QHD, dk_KHD, dv_KHD),
            **_package_settings(call, scale),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return dq_QHD, dk_KHD, dv_KHD


def _package_settings(call: VarlenCall, scale: float) -> dict[str, Any]:
    """Arguments that the package's forward and backward have in common."""
    return {
        "cu_seqlens_q": call.cu_rows_S,
        "cu_seqlens_k": call.cu_keys_S,
        "max_seqlen_q": call.max_rows,
        "max_seqlen_k": call.max_keys,
        "dropout_p": 0.0,
        "softmax_scale": scale,
        "causal": call.causal,
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "alibi_slopes": None,
    }


FA3_PACKAGE = "flash_attn_interface"


def find_varlen() -> tuple[str, Varlen] | None:
    """Return the name and the kernel of this installation, torch's own first; None if there is none.

    Where the package of FlashAttention 3 is installed, torch's operators run it on Hopper.
    """
    if torch.backends.cuda.is_flash_attention_available():
        return _activate_fa3() or "torch's FlashAttention", TorchVarlen()
    if find_spec("flash_attn") is not None:
        return "the flash_attn package", PackageVarlen()
    return None


@cache
def _activate_fa3() -> str | None:
    """Switch torch to FlashAttention 3 where it can run; return its name, else None."""
    if find_spec(FA3_PACKAGE) is None or not torch.cuda.is_available():
        return None
    if torch.cuda.get_device_capability()[0] != 9:
        return None
    try:
        if torch_attention.current_flash_attention_impl() != "FA3":
            torch_attention.activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        log.warning(
            "%s is installed and does not load, FlashAttention 2 runs: %s", FA3_PACKAGE, error
        )
        return None
    return "FlashAttention 3"


@cache
def installed_varlen(dtype: torch.dtype) -> Varlen:
    """Return the kernel of :func:`find_varlen` for queries of ``dtype``.

    Raises:
        ValueError: it cannot run; names what to change.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"attention backend flash computes in bfloat16 or float16, not {dtype}: "
            "choose flex, or train in mixed precision"
        )
    found = find_varlen()
    if found is None:
        raise ValueError(
            "attention backend flash: neither torch's FlashAttention nor the flash_attn package found"
        )
    return found[1]
