"""``native`` backend: a C++ kernel over the whole packed row, for CPUs with AVX-512 and bf16 instructions.

Letters: N documents of the row; B, H, T, D as in :mod:`showo_kernels.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from showo_kernels.cpu import compiled
from showo_kernels.visibility import Visibility

DTYPES = (torch.float32, torch.bfloat16)


class _Attention(torch.autograd.Function):
    """The kernel with its backward.

    As FlashAttention does, it saves its inputs, its output and one log-sum-exp per row and head, and
    computes the attention weights again in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, q_HTD: Tensor, k_HTD: Tensor, v_HTD: Tensor, plan: NativePlan, scale: float
    ) -> Tensor:
        out_HTD, log_sum_HT = torch.ops.showo_kernels.omni_attention(
            q_HTD, k_HTD, v_HTD, *plan.arrays, scale
        )
        ctx.save_for_backward(q_HTD, k_HTD, v_HTD, out_HTD, log_sum_HT)
        ctx.plan, ctx.scale = plan, scale
        return out_HTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_HTD: Tensor) -> tuple[Tensor | None, ...]:
        grads = torch.ops.showo_kernels.omni_attention_backward(
            *ctx.saved_tensors, _dense_rows(grad_HTD), *ctx.plan.arrays, ctx.scale
        )
        return *grads, None, None


def _dense_rows(x_HTD: Tensor) -> Tensor:
    """Copy a tensor unless each token's D numbers are contiguous and the stride between tokens is even."""
    # The kernel reads bf16 numbers in pairs, so a token must begin at an even offset.
    fits = x_HTD.stride(-1) == 1 and x_HTD.stride(1) % 2 == 0
    return x_HTD if fits else x_HTD.contiguous()


@dataclass(frozen=True)
class NativePlan:
    """The arrays of a visibility as the kernel reads them.

    Attributes:
        starts_N: int32 (N + 1), first token of each document, then T.
        reach_T, is_global_T: of the visibility.
        globals_T: int32 (T + 1), the number of global tokens before each token.
    """

    starts_N: Tensor
    reach_T: Tensor
    is_global_T: Tensor
    globals_T: Tensor

    @classmethod
    def build(cls, visibility: Visibility, device: torch.device) -> NativePlan:
        """Compute the arrays, on the CPU.

        Raises:
            ValueError: ``device`` is not a CPU, or the kernel cannot run on this machine.
        """
        obstacle = compiled.obstacle() if device.type == "cpu" else "it is a kernel for CPUs"
        if obstacle is not None:
            raise ValueError(f"attention backend native: {obstacle}")
        host = visibility.to("cpu")
        lengths_N = torch.unique_consecutive(host.document_T, return_counts=True)[1]
        zero = torch.zeros(1, dtype=torch.int64)
        starts_N = torch.cat([zero, lengths_N.cumsum(0)]).int()
        globals_T = torch.cat([zero, host.is_global_T.cumsum(0)]).int()
        # The kernel expects contiguous arrays of these types.
        return cls(
            starts_N, host.reach_T.int().contiguous(), host.is_global_T.contiguous(), globals_T
        )

    def __len__(self) -> int:
        return len(self.reach_T)

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """The arguments of the kernel, in its order."""
        return self.starts_N, self.reach_T, self.is_global_T, self.globals_T

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention in one kernel call; see :func:`showo_kernels.attend`.

        Raises:
            ValueError: another dtype than fp32 and bf16, or an odd head width.
        """
        if query_BHTD.dtype not in DTYPES or query_BHTD.shape[-1] % 2:
            found = f"{query_BHTD.dtype} with heads of {query_BHTD.shape[-1]}"
            raise ValueError(
                f"attention native computes float32 and bfloat16 with heads of an even size, not {found}: "
                "choose sdpa"
            )
        assert scale >= 0, "the kernel hides a score by making it minus infinity"
        # squeeze, since the backward of [0] fills and copies a whole tensor.
        inputs = (_dense_rows(x.squeeze(0)) for x in (query_BHTD, key_BHTD, value_BHTD))
        return _Attention.apply(*inputs, self, scale).unsqueeze(0)
