"""Attention as one operator that ``torch.compile`` keeps whole inside a compiled block.

A plan is Python data whose size differs from batch to batch: a block that saw it would be compiled anew.
The operator gets a one-element tensor with the plan's number and looks the plan up when it runs.

Letters: T tokens of the row, H query heads, D head width, S log-sum-exps kept per row and head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class OperatorPlan(Protocol):
    """A plan whose forward and backward can run apart from each other, without an autograd graph between."""

    @property
    def sums(self) -> int:
        """S: log-sum-exps that backward needs per row and head."""

    def run(
        self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Compute the output (T, H, D) and the fp32 log-sum-exps (S, H, T)."""

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
        """Compute the gradients of query, key and value from what ``run`` got and returned."""


class Recomputed(ABC):
    """Base of plans that are made of torch's own operators: backward computes the output again."""

    sums = 0

    @abstractmethod
    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention of one layer; see :func:`showo_kernels.attend`."""

    def run(
        self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`OperatorPlan.run`; S is 0."""
        q_BHTD, k_BHTD, v_BHTD = (x.transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
        out_BHTD = self.attend(q_BHTD, k_BHTD, v_BHTD, scale)
        sums_SHT = q_THD.new_empty(0, q_THD.shape[1], len(q_THD), dtype=torch.float32)
        return out_BHTD[0].transpose(0, 1), sums_SHT

    def run_backward(
        self,
        grad_THD: Tensor,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        _out_THD: Tensor,
        _sums_SHT: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`OperatorPlan.run_backward`."""
        q_THD, k_THD, v_THD = (x.detach().requires_grad_() for x in (q_THD, k_THD, v_THD))
        with _recording(), torch.enable_grad():
            out_THD, _ = self.run(q_THD, k_THD, v_THD, scale)
            dq_THD, dk_THD, dv_THD = torch.autograd.grad(out_THD, (q_THD, k_THD, v_THD), grad_THD)
        return dq_THD, dk_THD, dv_THD


def _recording() -> Any:
    """Let autograd record inside an operator, which torch runs below autograd."""
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    return torch._C._ForceDispatchKeyGuard(included, excluded)


class PlanHandle(NamedTuple):
    """Stands for a plan inside a compiled block.

    Attributes:
        number: int64 (1,) on the CPU; it keeps the plan alive, also as a tensor that is saved for backward.
        sums: S of the plan.
    """

    number: Tensor
    sums: int

    @classmethod
    def of(cls, plan: OperatorPlan) -> PlanHandle:
        """Register a plan for as long as the handle, or a graph that has used it, exists."""
        number = next(_numbers)
        _plans[number] = plan
        tensor = torch.tensor([number])
        # Autograd saves this very tensor, and a tensor keeps its Python attributes.
        tensor.plan = plan  # type: ignore[attr-defined]
        return cls(tensor, plan.sums)


_numbers = count()
_plans: WeakValueDictionary[int, OperatorPlan] = WeakValueDictionary()


@torch.library.custom_op("showo_kernels::attention", mutates_args=())
def _attention(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, number: Tensor, sums: int, scale: float
) -> tuple[Tensor, Tensor]:
    out_THD, sums_SHT = _plans[int(number)].run(q_THD, k_THD, v_THD, scale)
    return out_THD.contiguous(), sums_SHT


@_attention.register_fake
def _(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, number: Tensor, sums: int, scale: float
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q_THD.shape
    sums_SHT = q_THD.new_empty(sums, heads, tokens, dtype=torch.float32)
    return torch.empty_like(q_THD, memory_format=torch.contiguous_format), sums_SHT


@torch.library.custom_op("showo_kernels::attention_backward", mutates_args=())
def _attention_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    out_THD: Tensor,
    sums_SHT: Tensor,
    number: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plans[int(number)]
    grads = plan.run_backward(grad_THD, q_THD, k_THD, v_THD, out_THD, sums_SHT, scale)
    dq_THD, dk_THD, dv_THD = (grad.contiguous() for grad in grads)
    return dq_THD, dk_THD, dv_THD


@_attention_backward.register_fake
def _(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    out_THD: Tensor,
    sums_SHT: Tensor,
    number: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq_THD, dk_THD, dv_THD = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_THD, k_THD, v_THD)
    )
    return dq_THD, dk_THD, dv_THD


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_THD, k_THD, v_THD, number, _, ctx.scale = inputs
    ctx.save_for_backward(q_THD, k_THD, v_THD, *output, number)


def _grads(ctx: Any, grad_THD: Tensor, _grad_sums: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.showo_kernels.attention_backward(grad_THD, *ctx.saved_tensors, ctx.scale)
    return *grads, None, None, None


_attention.register_autograd(_grads, setup_context=_save)


def attend_by_handle(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, handle: PlanHandle, scale: float
) -> Tensor:
    """Compute attention of one layer as one operator; differentiable; see :func:`showo_kernels.attend`."""
    q_THD, k_THD, v_THD = (x.squeeze(0).transpose(0, 1) for x in (query_BHTD, key_BHTD, value_BHTD))
    out_THD, _ = torch.ops.showo_kernels.attention(q_THD, k_THD, v_THD, *handle, scale)
    return out_THD.transpose(0, 1)[None]


class PlannedAttention(torch.autograd.Function):
    """A plan's own forward and backward outside of compiled blocks."""

    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, plan: OperatorPlan, scale: float
    ) -> Tensor:
        out_THD, sums_SHT = plan.run(q_THD, k_THD, v_THD, scale)
        ctx.save_for_backward(q_THD, k_THD, v_THD, out_THD, sums_SHT)
        ctx.plan, ctx.scale = plan, scale
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.plan.run_backward(grad_THD, *ctx.saved_tensors, ctx.scale), None, None

    @classmethod
    def of(
        cls,
        query_BHTD: Tensor,
        key_BHTD: Tensor,
        value_BHTD: Tensor,
        plan: OperatorPlan,
        scale: float,
    ) -> Tensor:
        """Compute attention of one layer; see :func:`showo_kernels.attend`."""
        # squeeze, since the backward of [0] fills and copies a whole tensor.
        rows = (x.squeeze(0).transpose(0, 1) for x in (query_BHTD, key_BHTD, value_BHTD))
        return cls.apply(*rows, plan, scale).transpose(0, 1).unsqueeze(0)
