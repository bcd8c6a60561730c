"""The numbers that predictions of time rest on, each with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from showo_dist.training.metrics import GPU_PEAKS

# Share of the data sheet's FLOP/s that a well-run training step of this size reaches before it waits for a
# network: MPT-1B (24 layers of width 2048, the same as Show-o's) on 8 H100, 41.8 % MFU, llm-foundry's table
# of throughput benchmarks.
TRAINING_EFFICIENCY = 0.418


@dataclass(frozen=True)
class Gpu:
    """One kind of device.

    Attributes:
        flops: dense bf16 FLOP/s.
        memory: bytes.
        memory_rate: bytes/s of its memory.
        link_rate: bytes/s that a ring of the GPUs of one host carries, each way, as NCCL reaches it.
        host_rate: bytes/s between two hosts, each way, all network cards together, as NCCL reaches it.
        source: of the numbers.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    host_rate: float
    source: str


# What NCCL's ring reaches: over fourth-generation NVLink 370 of 450 GB/s (nccl-tests issue 212), over a card
# of 400 Gb/s 46 to 48 of 50 GB/s (issue 290), over the A100's NVLink 208 of 300 GB/s (issue 178), over four
# cards of 200 Gb/s 96 of 100 GB/s (issue 119).
_HOPPER = "NVIDIA data sheet (SXM); hosts with 8 cards of 400 Gb/s; nccl-tests issues 212 and 290"
_AMPERE = (
    "NVIDIA data sheet (SXM 80 GB); hosts with 8 cards of 200 Gb/s; nccl-tests issues 178, 119"
)
GPUS: dict[str, Gpu] = {
    "h200": Gpu(GPU_PEAKS["H200"], 141e9, 4.8e12, 370e9, 8 * 47e9, _HOPPER),
    "h100": Gpu(GPU_PEAKS["H100"], 80e9, 3.35e12, 370e9, 8 * 47e9, _HOPPER),
    "a100": Gpu(GPU_PEAKS["A100"], 80e9, 2.04e12, 208e9, 2 * 96e9, _AMPERE),
}

# Seconds that a collective takes besides its bytes, per doubling of the ranks. An assumption, not measured:
# 36 microseconds on 8 GPUs. Small against the rest unless micro-batches are tiny.
COLLECTIVE_LATENCY_S = 12e-6
# AdamW on fp32 master weights reads and writes weight, two moments and gradient, and writes the bf16 copy.
ADAM_BYTES_PER_PARAMETER = 4 * 7 + 2


def gpu(name: str) -> Gpu:
    """A row of the table.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in GPUS:
        raise ValueError(f"--gpu {name}: allowed are {', '.join(GPUS)}")
    return GPUS[name]
