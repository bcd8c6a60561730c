"""Predict the seconds of an optimizer step from figures of the hardware: compute and ring collectives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from showo_dist.plan.roofline import GPU_RATES, Rates
from showo_dist.plan.shapes import Collective
from showo_dist.training.metrics import GPU_PEAKS

# What another system reaches, for comparison: MPT-1B (24 layers of width 2048, as Show-o) on 8 H100 has
# 41.8 % MFU in llm-foundry's table of throughput benchmarks. Plans took it for ours before they had a ledger.
MPT_1B_MFU = 0.418


@dataclass(frozen=True)
class Gpu:
    """Figures of one kind of GPU.

    Attributes:
        flops: dense bf16 FLOP/s.
        memory: bytes of memory.
        memory_rate: bytes/s of that memory.
        link_rate: bytes/s in each direction that NCCL reaches in a ring of the GPUs of one host.
        host_rate: bytes/s in each direction that NCCL reaches between two hosts over all network cards.
        source: of the figures.
        rates: of its kernels.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    host_rate: float
    source: str
    rates: Rates


# Rates that NCCL's ring reaches: 370 of 450 GB/s over fourth-generation NVLink (nccl-tests issue 212), 46 to
# 48 of 50 GB/s over a card of 400 Gb/s (issue 290), 208 of 300 GB/s over the A100's NVLink (issue 178), 96 of
# 100 GB/s over four cards of 200 Gb/s (issue 119).
_HOPPER = "NVIDIA data sheet (SXM); hosts with 8 cards of 400 Gb/s; nccl-tests issues 212 and 290"
_AMPERE = (
    "NVIDIA data sheet (SXM 80 GB); hosts with 8 cards of 200 Gb/s; nccl-tests issues 178, 119"
)
GPUS: dict[str, Gpu] = {
    "h200": Gpu(GPU_PEAKS["H200"], 141e9, 4.8e12, 370e9, 8 * 47e9, _HOPPER, GPU_RATES["h200"]),
    "h100": Gpu(GPU_PEAKS["H100"], 80e9, 3.35e12, 370e9, 8 * 47e9, _HOPPER, GPU_RATES["h100"]),
    "a100": Gpu(GPU_PEAKS["A100"], 80e9, 2.04e12, 208e9, 2 * 96e9, _AMPERE, GPU_RATES["a100"]),
}
# The same with the package of FlashAttention 3, whose paper (arXiv 2407.08608) names 1.5 to 2 times the rate
# of FlashAttention 2 on Hopper.
for _name in ("h200", "h100"):
    GPUS[f"{_name}-fa3"] = replace(GPUS[_name], rates=GPUS[_name].rates.with_attention(1.5))

# Seconds of a collective besides the time of its bytes, per doubling of the ranks. Assumed, not measured: 36
# microseconds on 8 GPUs. It matters only for very small micro-batches.
COLLECTIVE_LATENCY_S = 12e-6
# AdamW on fp32 master weights reads the gradient, reads and writes weight and both moments, and writes a bf16
# copy of the weight.
ADAM_BYTES_PER_PARAMETER = 4 * 7 + 2
# Muon has one moment instead of two; the matrices that are sent and orthogonalised are counted as FLOPs and
# collectives.
MUON_BYTES_PER_PARAMETER = 4 * 5 + 2
# An average of the weights (training.ema) reads the weight, and reads and writes the average.
EMA_BYTES_PER_PARAMETER = 4 * 3


def gpu(name: str) -> Gpu:
    """Look up a GPU by name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in GPUS:
        raise ValueError(f"--gpu {name}: allowed are {', '.join(GPUS)}")
    return GPUS[name]


# An Ethernet frame has a header of 14 bytes and 1500 more, of which TCP with time stamps leaves 1448 for
# payload.
FRAME_BYTES, PAYLOAD_BYTES = 1514, 1448


def sent_bytes(call: Collective, ranks: int, backend: str) -> float:
    """Bytes of payload that one rank sends in a collective, by the ring algorithm.

    Args:
        call: the collective.
        ranks: number of ranks of its group.
        backend: ``nccl`` or ``gloo``; gloo's reduce_scatter is an all_reduce.
    """
    share = (ranks - 1) / ranks
    if call.kind == "all_reduce" or (call.kind == "reduce_scatter" and backend == "gloo"):
        return 2 * share * call.bytes
    return share * call.bytes


def step_bytes(calls: Iterable[Collective], ranks: int, backend: str) -> float:
    """Bytes of payload that one rank sends in one optimizer step."""
    return sum(sent_bytes(call, ranks, backend) for call in calls)


def on_the_wire(payload: float) -> float:
    """Bytes of the Ethernet frames that carry a TCP payload, all of them full."""
    return payload * FRAME_BYTES / PAYLOAD_BYTES


@dataclass(frozen=True)
class Cluster:
    """The hosts of a run and their network.

    Attributes:
        hosts: number of hosts.
        per_host: ranks per host.
        backend: ``nccl`` or ``gloo``.
        rank_rate: bytes/s in each direction of a ring inside one host.
        host_rate: bytes/s in each direction between two hosts; for gloo, of frames on the wire.
        latency_s: seconds of a collective besides its bytes, per doubling of the ranks.
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
        """A cluster of GPUs of the table with NCCL."""
        rates = gpu.link_rate, gpu.host_rate
        return cls(hosts, per_host, "nccl", *rates, COLLECTIVE_LATENCY_S, overlaps=True)

    def seconds(self, call: Collective) -> float:
        """Time of one collective over all ranks; the slowest link of the ring decides."""
        if self.ranks == 1:
            return 0.0
        sent = sent_bytes(call, self.ranks, self.backend)
        seconds = sent / self.rank_rate
        if self.hosts > 1:
            outward = sent
            if call.kind == "all_to_all":
                # Not a ring: all ranks of a host send to those of other hosts at once.
                outward *= self.per_host * (self.ranks - self.per_host) / (self.ranks - 1)
            outward = on_the_wire(outward) if self.backend == "gloo" else outward
            seconds = max(seconds, outward / self.host_rate)
        return seconds + self.latency_s * math.log2(self.ranks)


@dataclass(frozen=True)
class Update:
    """Work of one rank's optimizer.

    Attributes:
        bytes: read and written.
        flops: of Muon's orthogonalisation.
    """

    bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Compute:
    """Seconds of compute of one rank in one optimizer step.

    Attributes:
        forward_s: the model's forward passes.
        backward_s: the model's backward passes, recomputation included.
        encoders_s: the frozen encoders, before the step.
        optimizer_s: the update.
        useful_flops: FLOPs that count for MFU.
        launch_s: the part of the passes and encoders that is spent on kernels shorter than a launch.
    """

    forward_s: float
    backward_s: float
    encoders_s: float
    optimizer_s: float
    useful_flops: float
    launch_s: float = 0.0

    @property
    def busy_s(self) -> float:
        return self.forward_s + self.backward_s + self.encoders_s + self.optimizer_s


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step: compute, communication, and the exposed part of communication."""

    compute_s: float
    communication_s: float
    exposed_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exposed_s

    def mfu(self, compute: Compute, gpu: Gpu) -> float:
        """Model FLOPs utilisation: useful FLOP/s as a fraction of the data sheet's."""
        return compute.useful_flops / self.total_s / gpu.flops


def step_time(compute: Compute, calls: list[Collective], cluster: Cluster) -> StepTime:
    """Predict the time of a step.

    A backend that overlaps sends gradients (and fetches ZeRO-3's weights) while the same pass computes; the
    collectives of the update are always waited for.
    """
    by_phase: dict[str, float] = {}
    for call in calls:
        by_phase[call.phase] = by_phase.get(call.phase, 0.0) + cluster.seconds(call)
    hidden = {"forward": compute.forward_s, "backward": compute.backward_s}
    exposed = sum(
        max(0.0, seconds - (hidden.get(phase, 0.0) if cluster.overlaps else 0.0))
        for phase, seconds in by_phase.items()
    )
    return StepTime(compute.busy_s, sum(by_phase.values()), exposed)
