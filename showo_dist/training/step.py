"""One optimizer step over a window of micro-batches, with one mean per flow over the global batch."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from showo_dist.sequences import FLOWS, PackedBatch
from showo_dist.training.engine import Engine


@dataclass(frozen=True)
class StepLosses:
    """Losses of one optimizer step over all ranks and micro-steps.

    Attributes:
        means: cross-entropy of each flow that had labels, in nats per label.
        total: coefficients times means.
        grad_norm: norm of the whole gradient before clipping.
        parameter_norms: gradient norm of every parameter, when asked for.
        applied: false when loss or gradient was not finite; then weights, moments and learning rate are
            unchanged on all ranks.
        bad_flows: of each micro-step of this rank, the flows whose own loss was not finite.
        stop: whether any rank had received a stop signal when the step began.
    """

    means: dict[str, float]
    total: float
    grad_norm: float
    parameter_norms: dict[str, float]
    applied: bool
    bad_flows: list[set[str]]
    stop: bool


class Readout:
    """Values of the device on their way to the host; reading them waits only if they are not there yet.

    Args:
        values: of the device; copied without waiting, on a GPU to pinned memory.
    """

    def __init__(self, values: Tensor) -> None:
        self._host = values.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if values.is_cuda else None

    def numbers(self) -> list[float]:
        """The values, flat."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.flatten().tolist()


def _noop(phase: str) -> None:
    """Default of ``enter``: do nothing."""


class Stepper:
    """Runs optimizer steps of an engine.

    The loss of a flow is its sum over the global batch (all ranks, all micro-steps of the window) divided by
    the number of labels in it. The labels are counted before the first backward, with one small all-reduce
    per optimizer step. Engines divide gradients by micro-steps, and most by ranks; the scale given to
    each flow's sum undoes that, so the curve does not depend on how the batch is split.

    A step whose loss or gradient is not finite on any rank is skipped on all ranks: engines skip a step when
    the gradient's norm over all ranks is not finite, and a non-finite loss is made to poison the gradient.

    The host waits for the device once per step, where the engine judges that norm. The losses are copied
    before it, so they have arrived by then.

    Args:
        engine: around a :class:`~showo_dist.models.showo.ShowO`.
        coefficients: per flow; absent ones count 0.
        normalization: ``global``, or ``rank`` for the published mean per rank and micro-step.
        device: of the engine.
        wants_stop: whether this rank has received a stop signal; it is exchanged with the label counts.
        enter: called at the start of ``exchange`` (of label counts), ``forward``, ``backward`` and ``step``.
    """

    def __init__(
        self,
        engine: Engine,
        coefficients: dict[str, float],
        normalization: str,
        device: torch.device,
        wants_stop: Callable[[], bool] = bool,
        enter: Callable[[str], None] = _noop,
    ) -> None:
        self.engine, self.normalization, self.device = engine, normalization, device
        self.wants_stop, self.enter = wants_stop, enter
        values = [coefficients.get(flow, 0.0) for flow in FLOWS]
        self._coefficients = values
        self.coefficients_F = torch.tensor(values, dtype=torch.float64, device=device)

    def __call__(self, window: Seq[PackedBatch], parameter_norms: bool = False) -> StepLosses:
        """Forward, backward and step over the window's micro-batches, already on the device.

        Args:
            window: micro-batches of one optimizer step.
            parameter_norms: also measure the gradient of every parameter (one gather each).
        """
        self.enter("exchange")
        # Label counts follow from the masks alone, so they are known before any forward pass. Exchanging
        # them first gives every micro-step its final divisor: no gradient is rescaled afterwards.
        counts_MF = torch.stack([batch.label_counts() for batch in window])
        total_counts_F, stops = self._exchange(counts_MF.sum(dim=0))
        # float64: the rounding of a sum over the whole global batch stays invisible in the log.
        sums_MF = torch.zeros_like(counts_MF)
        norms: dict[str, float] = {}
        for micro, batch in enumerate(window):
            self.enter("forward")
            # An engine divides by micro-steps, and most by ranks, in backward: hence the scale.
            scale_F = self._scale(counts_MF[micro], total_counts_F, len(window))
            loss, sums_F = self.engine(batch, flow_scale_F=scale_F.float())
            sums_MF[micro] = sums_F.double()
            if self.engine.at_boundary:
                # Before the last backward, so that one rank's bad loss reaches every rank's gradient norm.
                total_sums_F = _summed(sums_MF.sum(dim=0))
                loss = _poison_loss(loss, total_sums_F)
                means_F = total_sums_F / total_counts_F.clamp(min=1)
                parts = (means_F, total_counts_F, stops, (~sums_MF.isfinite()).flatten())
                readout = Readout(torch.cat([part.double() for part in parts]))
            self.enter("backward")
            self.engine.backward(loss)
            self.enter("step")
            if parameter_norms and self.engine.at_boundary:
                norms = self.engine.parameter_norms()
            self.engine.step()
        return self._losses(readout.numbers(), norms)

    def _losses(self, numbers: list[float], parameter_norms: dict[str, float]) -> StepLosses:
        """From the means and label counts of the flows, the stop count, and 1 for each bad loss of F × M."""
        flows = len(FLOWS)
        means, counts, bad = numbers[:flows], numbers[flows : 2 * flows], numbers[2 * flows + 1 :]
        return StepLosses(
            # A flow without labels has no mean; reporting 0 would look like a perfect loss.
            means={f: m for f, m, n in zip(FLOWS, means, counts, strict=True) if n > 0},
            total=sum(c * m for c, m in zip(self._coefficients, means, strict=True)),
            grad_norm=self.engine.grad_norm(),
            parameter_norms=parameter_norms,
            applied=self.engine.applied,
            bad_flows=[
                {f for f, is_bad in zip(FLOWS, bad[first:], strict=False) if is_bad}
                for first in range(0, len(bad), flows)
            ],
            stop=bool(numbers[2 * flows]),
        )

    def _exchange(self, counts_F: Tensor) -> tuple[Tensor, Tensor]:
        """Label counts of the window, and the number of ranks that want to stop: one message for both."""
        stop = counts_F.new_full((1,), float(self.wants_stop()))
        # The stop flag travels with the counts: all ranks learn in the same step that one of them was
        # signalled, without a collective of its own.
        summed = _summed(torch.cat([counts_F, stop]))
        return summed[:-1], summed[-1:]

    def _scale(self, counts_F: Tensor, total_counts_F: Tensor, micro_steps: int) -> Tensor:
        """Factor of each flow's sum that turns the engine's averages into the wanted mean."""
        ranks = _world_size()
        divisor = ranks if self.engine.mean_over_ranks else 1
        if self.normalization == "rank":
            return self.coefficients_F / counts_F.clamp(min=1) * (divisor / ranks)
        # The mean wanted here is a sum over ranks and micro-steps: what the engine divides by is multiplied
        # back in.
        return self.coefficients_F / total_counts_F.clamp(min=1) * (divisor * micro_steps)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _summed(value: Tensor) -> Tensor:
    """Sum of a small tensor over ranks, as a copy."""
    value = value.clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def _poison_loss(loss: Tensor, total_sums_F: Tensor) -> Tensor:
    """Make the gradient NaN when the window's loss is not finite on any rank; else return ``loss``.

    A loss can be infinite while its gradient is finite (a target whose logit is minus infinity), and engines
    skip a step by the gradient's norm alone.
    """
    return loss * torch.where(total_sums_F.isfinite().all(), 1.0, torch.nan).to(loss.dtype)
