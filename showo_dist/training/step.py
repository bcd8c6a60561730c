"""One optimizer step over a window of micro-batches, with one mean per flow over the whole global batch."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from showo_dist.sequences import FLOWS, PackedBatch
from showo_dist.training.engine_state import gradient_norms


@dataclass(frozen=True)
class StepLosses:
    """Losses of one optimizer step over all ranks and micro-steps.

    Attributes:
        means: cross-entropy of each flow that had labels, nats per label.
        total: coefficients times means.
        grad_norm: norm of the whole gradient before clipping.
        parameter_norms: gradient norm of every parameter, when asked for.
        applied: false when loss or gradient was not finite; then weights, moments and learning rate are as
            they were, on all ranks.
        bad_flows: of each micro-step of this rank, the flows whose own loss was not finite.
        stop: whether any rank had been asked to stop when the step began.
    """

    means: dict[str, float]
    total: float
    grad_norm: float
    parameter_norms: dict[str, float]
    applied: bool
    bad_flows: list[set[str]]
    stop: bool


def _noop(phase: str) -> None:
    """Nobody asks what a step is doing."""


class Stepper:
    """Runs optimizer steps of an engine.

    The loss of a flow is its sum over the global batch divided by the labels in the global batch, which are
    counted before the first backward. Engines divide by ranks and micro-steps; the scale given to each
    flow's sum undoes that.

    A step whose loss or gradient is not finite anywhere is skipped everywhere: engines skip a step when the
    gradient's norm over all ranks is not finite, and a loss that is not makes the gradient so.

    Args:
        engine: around a :class:`~showo_dist.models.showo.ShowO`: DeepSpeed's, or a
            :class:`~showo_dist.training.torch_engine.TorchEngine`.
        coefficients: per flow; absent ones count 0.
        normalization: ``global``, or ``rank`` for the published mean per rank and micro-step.
        device: of the engine.
        wants_stop: whether this rank is asked to stop; all ranks learn of it with the label counts.
        enter: told ``exchange`` (of label counts), ``forward``, ``backward`` and ``step`` as they begin.
    """

    def __init__(
        self,
        engine: Any,
        coefficients: dict[str, float],
        normalization: str,
        device: torch.device,
        wants_stop: Callable[[], bool] = bool,
        enter: Callable[[str], None] = _noop,
    ) -> None:
        self.engine, self.normalization, self.device = engine, normalization, device
        self.wants_stop, self.enter = wants_stop, enter
        values = [coefficients.get(flow, 0.0) for flow in FLOWS]
        self.coefficients_F = torch.tensor(values, dtype=torch.float64, device=device)
        if isinstance(engine.optimizer, torch.optim.Optimizer):
            engine.optimizer.register_step_pre_hook(_without_gradients)

    def __call__(self, window: Seq[PackedBatch], parameter_norms: bool = False) -> StepLosses:
        """Forward, backward and step over the window's micro-batches, already on the device.

        Args:
            window: micro-batches of one optimizer step.
            parameter_norms: also measure the gradient of every parameter (one gather each).
        """
        self.enter("exchange")
        counts_MF = torch.stack([batch.label_counts() for batch in window])
        total_counts_F, stops = self._exchange(counts_MF.sum(dim=0))
        sums_MF = torch.zeros_like(counts_MF)
        norms: dict[str, float] = {}
        for micro, batch in enumerate(window):
            self.enter("forward")
            scale_F = self._scale(counts_MF[micro], total_counts_F, len(window))
            loss, sums_F = self.engine(batch, flow_scale_F=scale_F.float())
            sums_MF[micro] = sums_F.double()
            if self.engine.is_gradient_accumulation_boundary():
                total_sums_F = _summed(sums_MF.sum(dim=0))
                loss = _poison_loss(loss, total_sums_F)
            self.enter("backward")
            self.engine.backward(loss)
            self.enter("step")
            norm = _unwrapped_norm(self.engine)
            if parameter_norms and self.engine.is_gradient_accumulation_boundary():
                norms = gradient_norms(self.engine)
            if norm is not None:
                self.engine.optimizer.overflow = not bool(norm.isfinite())
            self.engine.step()
        named, total = self._means(total_sums_F, total_counts_F)
        if norm is None:
            norm = self.engine.get_global_grad_norm()
        return StepLosses(
            means=named,
            total=total,
            grad_norm=float("nan") if norm is None else float(norm),
            parameter_norms=norms,
            applied=self.engine.was_step_applied(),
            bad_flows=_not_finite(sums_MF),
            stop=bool(stops),
        )

    def _exchange(self, counts_F: Tensor) -> tuple[Tensor, Tensor]:
        """Labels of the whole window by flow, and how many ranks are asked to stop: one message for both."""
        stop = counts_F.new_tensor([float(self.wants_stop())])
        summed = _summed(torch.cat([counts_F, stop]))
        return summed[:-1], summed[-1]

    def _scale(self, counts_F: Tensor, total_counts_F: Tensor, micro_steps: int) -> Tensor:
        """Factor of each flow's sum, so that the engine's averages come out as the wanted mean."""
        if self.normalization == "rank":
            return self.coefficients_F / counts_F.clamp(min=1)
        return self.coefficients_F / total_counts_F.clamp(min=1) * (_world_size() * micro_steps)

    def _means(self, sums_F: Tensor, counts_F: Tensor) -> tuple[dict[str, float], float]:
        """Mean of each flow that had labels, and the total."""
        means = (sums_F / counts_F.clamp(min=1)).tolist()
        present = (counts_F > 0).tolist()
        named = {f: m for f, m, p in zip(FLOWS, means, present, strict=True) if p}
        return named, sum(c * m for c, m in zip(self.coefficients_F.tolist(), means, strict=True))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _summed(value: Tensor) -> Tensor:
    """Sum over ranks of a small tensor (a copy)."""
    value = value.clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def _poison_loss(loss: Tensor, total_sums_F: Tensor) -> Tensor:
    """``loss`` itself, or one without a finite gradient where the window's loss on any rank is not finite.

    A loss can be infinite while its gradient is not (a target whose logit is minus infinity).
    """
    return loss * torch.where(total_sums_F.isfinite().all(), 1.0, torch.nan).to(loss.dtype)


def _not_finite(sums_MF: Tensor) -> list[set[str]]:
    """Flows of each micro-step whose sum is not finite."""
    bad_MF = (~sums_MF.isfinite()).tolist()
    return [{f for f, bad in zip(FLOWS, row, strict=True) if bad} for row in bad_MF]


def _unwrapped_norm(engine: Any) -> Tensor | None:
    """Gradient norm where the engine wraps no optimizer and so keeps none (ZeRO-0 in fp32), else None."""
    if not isinstance(engine.optimizer, torch.optim.Optimizer):
        return None
    if not engine.is_gradient_accumulation_boundary():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _without_gradients(optimizer: Any, args: tuple, kwargs: dict) -> None:
    """Before the step of an optimizer that no engine guards: without gradients it changes nothing.

    ``overflow`` is the attribute that DeepSpeed asks an optimizer for, to know whether its step counts; so
    does our own engine.
    """
    if getattr(optimizer, "overflow", False):
        optimizer.zero_grad()
