"""Seconds of an optimizer step: compute, what communication adds to it, and reading data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from showo_dist.plan.hardware import (
    ADAM_BYTES_PER_PARAMETER,
    COLLECTIVE_LATENCY_S,
    TRAINING_EFFICIENCY,
    Gpu,
)
from showo_dist.plan.shapes import Collective, on_the_wire, sent_bytes


@dataclass(frozen=True)
class Cluster:
    """Where a run takes place.

    Attributes:
        hosts, per_host: hosts, and ranks on each.
        backend: ``nccl`` or ``gloo``.
        rank_rate: bytes/s that a ring inside one host carries, each way.
        host_rate: bytes/s between two hosts, each way, as frames on the wire for gloo.
        latency_s: of a collective, per doubling of the ranks.
        overlaps: whether gradients are sent while the backward pass computes.
    """

    hosts: int
    per_host: int
    backend: str
    rank_rate: float
    host_rate: float
    latency_s: float
    overlaps: bool

    @property
    def ranks(self) -> int:
        return self.hosts * self.per_host

    @classmethod
    def of(cls, gpu: Gpu, hosts: int, per_host: int) -> Cluster:
        """GPUs of the table, joined by NCCL."""
        rates = gpu.link_rate, gpu.host_rate
        return cls(hosts, per_host, "nccl", *rates, COLLECTIVE_LATENCY_S, overlaps=True)

    def seconds(self, call: Collective) -> float:
        """Time of one collective over all ranks. A ring that leaves hosts is as slow as the way out."""
        if self.ranks == 1:
            return 0.0
        sent = sent_bytes(call, self.ranks, self.backend)
        seconds = sent / self.rank_rate
        if self.hosts > 1:
            outward = on_the_wire(sent) if self.backend == "gloo" else sent
            seconds = max(seconds, outward / self.host_rate)
        return seconds + self.latency_s * math.log2(self.ranks)


@dataclass(frozen=True)
class Compute:
    """Work of one rank in one optimizer step.

    Attributes:
        forward_s, backward_s: seconds of the model, recomputation in ``backward_s``.
        encoders_s: of the frozen encoders, before the step.
        optimizer_s: of the update.
        useful_flops: that count for MFU.
    """

    forward_s: float
    backward_s: float
    encoders_s: float
    optimizer_s: float
    useful_flops: float

    @classmethod
    def on(
        cls,
        gpu: Gpu,
        useful_flops: float,
        updated_parameters: float,
        recomputed: bool,
        encoder_flops: float = 0.0,
    ) -> Compute:
        """On a GPU of the table: a third of the useful work is the forward pass, done twice if recomputed."""
        rate = gpu.flops * TRAINING_EFFICIENCY
        forward = useful_flops / 3 / rate
        return cls(
            forward_s=forward,
            backward_s=(3 if recomputed else 2) * forward,
            encoders_s=encoder_flops / rate,
            optimizer_s=updated_parameters * ADAM_BYTES_PER_PARAMETER / gpu.memory_rate,
            useful_flops=useful_flops,
        )


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step and what they are made of."""

    compute_s: float
    communication_s: float
    exposed_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exposed_s

    def mfu(self, compute: Compute, gpu: Gpu) -> float:
        """Share of the data sheet's FLOP/s that is useful work."""
        return compute.useful_flops / self.total_s / gpu.flops


def step_time(compute: Compute, calls: list[Collective], cluster: Cluster) -> StepTime:
    """Time of a step.

    Gradients (and ZeRO-3's weights) travel while the pass that makes (or needs) them computes, where the
    backend can; the update's collectives are waited for.
    """
    by_phase: dict[str, float] = {}
    for call in calls:
        by_phase[call.phase] = by_phase.get(call.phase, 0.0) + cluster.seconds(call)
    hidden = {"forward": compute.forward_s, "backward": compute.backward_s}
    exposed = sum(
        max(0.0, seconds - (hidden.get(phase, 0.0) if cluster.overlaps else 0.0))
        for phase, seconds in by_phase.items()
    )
    busy = compute.forward_s + compute.backward_s + compute.encoders_s + compute.optimizer_s
    return StepTime(busy, sum(by_phase.values()), exposed)
