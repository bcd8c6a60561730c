"""What a step reports, over all ranks."""

import resource
import time

import torch
import torch.distributed as dist

from showo_dist.sequences import PackedBatch
from showo_dist.training.batches import Account
from showo_dist.training.step import StepLosses
from showo_dist.training.throughput import Work


def memory_gb(device: torch.device) -> float:
    """Peak memory of this rank in GB: of the GPU's allocator, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Adds up the steps between two lines of the log, and reduces them over ranks.

    Args:
        work: matrix work of the model.
        peak: FLOP/s of one rank's device, which MFU is measured against.
        device: of this rank.
    """

    def __init__(self, work: Work, peak: float, device: torch.device) -> None:
        self.work, self.peak, self.device = work, peak, device
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._sums = dict.fromkeys(("tokens", "samples", "flops", "wait_s", "steps"), 0.0)
        self._masking: dict[str, list[float]] = {}

    def add(self, window: list[PackedBatch], account: Account) -> None:
        """Count one optimizer step of this rank."""
        self._sums["tokens"] += sum(batch.real_tokens for batch in window)
        self._sums["flops"] += sum(self.work.flops(batch) for batch in window)
        self._sums["samples"] += account.samples
        self._sums["wait_s"] += account.wait_s
        self._sums["steps"] += 1
        for flow, rates in account.masking.items():
            self._masking.setdefault(flow, []).extend(rates)

    def read(self, losses: StepLosses, learning_rate: float, skipped: int) -> dict[str, float]:
        """The metrics since the last call; collective."""
        seconds = time.perf_counter() - self._start
        steps, world = self._sums["steps"], dist.get_world_size()
        names = ("tokens", "samples", "flops", "wait_s")
        values = [*(self._sums[name] for name in names), float(skipped)]
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced)
        tokens, samples, flops, wait_s, skipped_all = reduced.tolist()
        metrics = {
            "loss": losses.total,
            **{f"loss/{flow}": value for flow, value in losses.means.items()},
            "lr": learning_rate,
            "grad_norm": losses.grad_norm,
            **{f"grad_norm/{name}": norm for name, norm in losses.parameter_norms.items()},
            **{f"masking_rate/{f}": sum(r) / len(r) for f, r in self._masking.items()},
            "tokens_per_s": tokens / seconds,
            "samples_per_s": samples / seconds,
            "tflops": flops / seconds / 1e12,
            "mfu": flops / seconds / (self.peak * world),
            "step_s": seconds / steps,
            "data_wait_s": wait_s / steps / world,
            "memory_gb": memory_gb(self.device),
            "skipped": skipped_all,
        }
        self._reset()
        return metrics
