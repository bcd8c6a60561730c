"""Speed of the line between two hosts, by the collectives that training uses.

What runs on each host: answers questions, one JSON object per line, until its input ends.

``python -m showo_launch.doctor.probe``
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from showo_launch.doctor.facts import existing, facts

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


_TOKEN = ".showo-doctor-{}"
_CONNECT_S = 5.0
_listening: dict[int, socket.socket] = {}


def now() -> float:
    """This host's clock, in seconds."""
    return time.time()


def write_token(folder: str) -> str:
    """Put a file of random name into a folder (or the one above that exists); returns its path."""
    path = existing(folder) / _TOKEN.format(secrets.token_hex(8))
    path.touch(exist_ok=False)
    return str(path)


def sees(path: str) -> bool:
    """Whether this host sees the file. Its folder is listed anew, past what a network disk remembers."""
    folder, name = os.path.split(path)
    return os.path.isdir(folder) and name in os.listdir(folder)


def remove(path: str) -> None:
    """Take a token away."""
    Path(path).unlink(missing_ok=True)


def listen(port: int) -> str | None:
    """Open a port until ``close``; None, or why not."""
    try:
        _listening[port] = socket.create_server(("", port))
    except OSError as error:
        return str(error.strerror)
    return None


def close(port: int) -> None:
    """End ``listen``."""
    _listening.pop(port).close()


def connect(address: str, port: int) -> str | None:
    """None when the port of that address can be reached, or why not."""
    try:
        socket.create_connection((address, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def load_torch() -> str:
    """Its version; may take a while from a shared disk."""
    import torch

    return str(torch.__version__)


def all_reduce(
    rank: int, address: str, port: int, megabytes: float, timeout_s: float
) -> dict[str, float]:
    """Bandwidth and latency of an all-reduce of two hosts."""

    return measure(rank, address, port, megabytes, timeout_s)


ANSWERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(facts, now, write_token, sees, remove),
        *(listen, close, connect, load_torch, all_reduce),
    )
}


def _answer(line: str) -> dict[str, Any]:
    try:
        question = json.loads(line)
        return {"answer": ANSWERS[question["ask"]](**question["with"])}
    except Exception as error:  # reported by the side that asked
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serve until the input ends. What libraries print goes to stderr, not among the answers."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(_answer(line)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
