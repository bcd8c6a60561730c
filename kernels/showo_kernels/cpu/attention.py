"""``native`` backend: a C++ kernel over the whole packed row, for CPUs with AVX-512 and bf16 instructions.

Letters: N documents of the row; B, H, T, D as in :mod:`showo_kernels.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from showo_kernels.cpu import compiled
from showo_kernels.planned import PlannedAttention
from showo_kernels.visibility import Visibility

DTYPES = (torch.float32, torch.bfloat16)


def _dense_rows(*tensors_THD: Tensor) -> Iterator[Tensor]:
    """Transpose to (H, T, D); copy unless a token's D numbers are contiguous and tokens evenly spaced."""
    # The kernel reads bf16 numbers in pairs, so a token must begin at an even offset.
    for x_THD in tensors_THD:
        fits = x_THD.stride(-1) == 1 and x_THD.stride(0) % 2 == 0
        x_HTD = x_THD.transpose(0, 1)
        yield x_HTD if fits else x_HTD.contiguous()


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

    sums = 1

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
        return PlannedAttention.of(query_BHTD, key_BHTD, value_BHTD, self, scale)

    def run(
        self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Compute output and log-sum-exps; see :class:`showo_kernels.planned.OperatorPlan`."""
        assert scale >= 0, "the kernel hides a score by making it minus infinity"
        out_HTD, sums_HT = torch.ops.showo_kernels.omni_attention(
            *_dense_rows(q_THD, k_THD, v_THD), *self.arrays, scale
        )
        return out_HTD.transpose(0, 1), sums_HT[None]

    def run_backward(
        self,
        grad_THD: Tensor,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        out_THD: Tensor,
        sums_1HT: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients; as FlashAttention does, it computes the attention weights again."""
        q_HTD, k_HTD, v_HTD, grad_HTD = _dense_rows(q_THD, k_THD, v_THD, grad_THD)
        dq_HTD, dk_HTD, dv_HTD = torch.ops.showo_kernels.omni_attention_backward(
            *(q_HTD, k_HTD, v_HTD, out_THD.transpose(0, 1), sums_1HT[0], grad_HTD),
            *(*self.arrays, scale),
        )
        return dq_HTD.transpose(0, 1), dk_HTD.transpose(0, 1), dv_HTD.transpose(0, 1)
