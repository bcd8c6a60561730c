"""Speed of the line between two hosts, by the collectives that training uses."""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_SMALL_CALLS, _LARGE_CALLS = 20, 3


def _seconds(tensor: Tensor, calls: int) -> float:
    """Of the fastest of several all-reduces, for a slower one waited for something else."""
    best = float("inf")
    for _ in range(calls):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def measure(
    rank: int, address: str, port: int, megabytes: float, timeout_s: float
) -> dict[str, float]:
    """All-reduce between two hosts, one process each: NCCL where there are GPUs, else gloo.

    Args:
        rank: 0 or 1; rank 0 is at ``address``.
        address, port: where the two meet.
        megabytes: size of the large all-reduce.
        timeout_s: of meeting and of each collective.

    Returns:
        ``gbit``: Gb/s that each host sent, ``latency_ms``: of an all-reduce of one number.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        small_s = _seconds(torch.ones(1, device=device), _SMALL_CALLS)
        size = int(megabytes * 1e6) // 4
        large_s = _seconds(torch.ones(size, device=device), _LARGE_CALLS)
    finally:
        dist.destroy_process_group()
    # Of a ring of two, each rank sends as many bytes as the tensor has.
    return {"gbit": size * 4 * 8 / 1e9 / large_s, "latency_ms": 1000 * small_s}
