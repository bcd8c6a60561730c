"""Metrics of a run over all ranks: losses, tokens per second, FLOPs and their share of the peak (MFU)."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from showo_dist.models.showo import ShowO
from showo_dist.sequences import FLOWS, PackedBatch

if TYPE_CHECKING:  # these read data, which the benchmark of a step on a bare machine cannot
    from showo_dist.training.batches import Account
    from showo_dist.training.step import StepLosses

# Dense bf16 peaks in FLOP/s without sparsity, from the data sheets; the first name that matches counts, so
# slower variants of a GPU come before it.
GPU_PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
}


@dataclass(frozen=True)
class Work:
    """FLOPs of the matrix products of a training step: forward, and twice that for backward.

    Attributes:
        block_parameters: matrix parameters of all blocks and the projector.
        head_parameters: matrix parameters of the head.
        attention_width: layers times heads times head width: each visible pair costs 12 times this.
    """

    block_parameters: int
    head_parameters: int
    attention_width: int

    @classmethod
    def of(cls, model: ShowO) -> Work:
        shapes = {n: getattr(p, "ds_shape", p.shape) for n, p in model.named_parameters()}
        matrices = {name: shape.numel() for name, shape in shapes.items() if len(shape) == 2}
        # The embedding table is looked up, not multiplied; the head runs on labelled rows only.
        tables = sum(matrices.get(name, 0) for name in model.tables)
        head = getattr(model.head.weight, "ds_shape", model.head.weight.shape).numel()
        return cls(sum(matrices.values()) - tables, head, model.attention_width)

    def flops(self, batch: PackedBatch) -> float:
        """FLOPs of a batch: tokens through the blocks, labelled rows through the head, visible pairs only.

        Padding, masked pairs and recomputation do not count as useful work.
        """
        tokens, labels = batch.real_tokens, batch.labels
        matrices = 6 * (self.block_parameters * tokens + self.head_parameters * labels)
        return matrices + 12 * self.attention_width * batch.visibility.pairs()


_REPORTS = 20  # in which a product is timed


class Peak:
    """FLOP/s that MFU is measured against: a known GPU's data sheet, else the fastest matrix product seen.

    A product is timed again with each of the first reports, so that a device which was busy at the start does
    not count as slow for the whole run.

    Args:
        device: of this rank; the ranks of one machine measure at the same time.
        dtype: number format of the forward pass.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.flops = next((peak for known, peak in GPU_PEAKS.items() if known in name), 0.0)
        self._left = 0 if self.flops else 5 + _REPORTS
        # A GPU finishes a small product before the launch of the next one; a large one in bf16 takes seconds
        # on a CPU without instructions for it.
        self._size = 8192 if device.type == "cuda" else 384
        self._device, self._dtype = device, dtype
        for _ in range(5):
            self.measure()

    def measure(self) -> None:
        """Time one more product, unless the GPU is listed or enough were timed."""
        if not self._left:
            return
        self._left -= 1
        a = torch.ones(self._size, self._size, dtype=self._dtype, device=self._device)
        a @ a
        start = self._now()
        a @ a
        self.flops = max(self.flops, 2 * self._size**3 / (self._now() - start))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def memory_gb(device: torch.device) -> float:
    """Peak memory of this rank in GB: of the GPU's allocator, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Sums over the steps between two log lines, reduced over ranks.

    Args:
        work: FLOP counts of the model.
        peak: of this rank's device.
        device: of this rank.
    """

    def __init__(self, work: Work, peak: Peak, device: torch.device) -> None:
        self.work, self.peak, self.device = work, peak, device
        self._masking: dict[str, tuple[float, int]] = {}
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._sums = dict.fromkeys(("tokens", "samples", "flops", "wait_s", "steps"), 0.0)

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Time that is no part of a step: validation, image grids, the wait for a save."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, window: list[PackedBatch], account: Account) -> None:
        """Count one optimizer step of this rank."""
        self._sums["tokens"] += sum(batch.real_tokens for batch in window)
        self._sums["flops"] += sum(self.work.flops(batch) for batch in window)
        self._sums["samples"] += account.samples
        self._sums["wait_s"] += account.wait_s
        self._sums["steps"] += 1
        # Like the losses, of the last step alone.
        self._masking = {flow: (sum(r), len(r)) for flow, r in account.masking.items()}

    def read(self, losses: StepLosses, learning_rate: float, skipped: int) -> dict[str, float]:
        """The metrics since the last call; collective."""
        # Read before the reduction, which waits for the slowest rank.
        seconds = time.perf_counter() - self._start
        steps, world = self._sums["steps"], dist.get_world_size()
        # One all-reduce for all sums of the interval.
        self.peak.measure()
        names = ("tokens", "samples", "flops", "wait_s")
        masking = [number for flow in FLOWS for number in self._masking.get(flow, (0.0, 0))]
        values = [*(self._sums[name] for name in names), float(skipped), *masking]
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced)
        tokens, samples, flops, wait_s, skipped_all, *masking = reduced.tolist()
        rates = zip(FLOWS, masking[::2], masking[1::2], strict=True)
        metrics = {
            "loss": losses.total,
            **{f"loss/{flow}": value for flow, value in losses.means.items()},
            "lr": learning_rate,
            "grad_norm": losses.grad_norm,
            **{f"grad_norm/{name}": norm for name, norm in losses.parameter_norms.items()},
            **{f"masking_rate/{flow}": total / count for flow, total, count in rates if count},
            "tokens_per_s": tokens / seconds,
            "samples_per_s": samples / seconds,
            "tflops": flops / seconds / 1e12,
            "mfu": flops / seconds / (self.peak.flops * world),
            "step_s": seconds / steps,
            "data_wait_s": wait_s / steps / world,
            "memory_gb": memory_gb(self.device),
            "skipped": skipped_all,
        }
        self._reset()
        return metrics
