"""One optimizer step over a window of micro-batches, with one mean per flow over the whole global batch."""

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
    """

    means: dict[str, float]
    total: float
    grad_norm: float
    parameter_norms: dict[str, float]


class Stepper:
    """Runs optimizer steps of an engine.

    The loss of a flow is its sum over the global batch divided by the labels in the global batch, which are
    counted before the first backward. Engines divide by ranks and micro-steps; the scale given to each
    flow's sum undoes that.

    Args:
        engine: around a :class:`~showo_dist.models.showo.ShowO`: DeepSpeed's, or a
            :class:`~showo_dist.training.torch_engine.TorchEngine`.
        coefficients: per flow; absent ones count 0.
        normalization: ``global``, or ``rank`` for the published mean per rank and micro-step.
        device: of the engine.
    """

    def __init__(
        self,
        engine: Any,
        coefficients: dict[str, float],
        normalization: str,
        device: torch.device,
    ) -> None:
        self.engine, self.normalization, self.device = engine, normalization, device
        values = [coefficients.get(flow, 0.0) for flow in FLOWS]
        self.coefficients_F = torch.tensor(values, dtype=torch.float64, device=device)

    def __call__(self, window: Seq[PackedBatch], parameter_norms: bool = False) -> StepLosses:
        """Forward, backward and step over the window's micro-batches, already on the device.

        Args:
            window: micro-batches of one optimizer step.
            parameter_norms: also measure the gradient of every parameter (one gather each).
        """
        norms: dict[str, float] = {}
        counts_MF = torch.stack([batch.label_counts() for batch in window])
        total_counts_F = _summed(counts_MF.sum(dim=0))
        sums_F = torch.zeros_like(self.coefficients_F)
        for batch, counts_F in zip(window, counts_MF, strict=True):
            scale_F = self._scale(counts_F, total_counts_F, len(window))
            loss, batch_sums_F = self.engine(batch, flow_scale_F=scale_F.float())
            self.engine.backward(loss)
            norm = _unwrapped_norm(self.engine)
            if parameter_norms and self.engine.is_gradient_accumulation_boundary():
                norms = gradient_norms(self.engine)
            self.engine.step()
            sums_F += batch_sums_F.double()
        named, total = self._means(_summed(sums_F), total_counts_F)
        if norm is None:
            norm = self.engine.get_global_grad_norm()
        whole = float("nan") if norm is None else float(norm)
        return StepLosses(named, total, whole, norms)

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


def _unwrapped_norm(engine: Any) -> Tensor | None:
    """Gradient norm where the engine wraps no optimizer and so keeps none (ZeRO-0 in fp32), else None."""
    if not isinstance(engine.optimizer, torch.optim.Optimizer):
        return None
    if not engine.is_gradient_accumulation_boundary():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
