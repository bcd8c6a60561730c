"""Start real ranks whose memory and traffic are compared with a plan: on this machine, or in namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests import forks

LIMIT_S = 900.0


def rank_environment(
    rank: int, world: int, address: str, port: int, accelerator: str = "cpu"
) -> dict[str, str]:
    """The environment variables that a launcher sets for a rank."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if accelerator == "cpu" else {}
    return {
        **hidden,
        **forks.rank_environment(rank, world, port),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": address,
        "DS_ACCELERATOR": accelerator,
    }


def measuring(quantity: str, out: Path, cases: Iterable[list[str]]) -> list[str]:
    """The command line of one rank."""
    arguments = [quantity, str(out), *(json.dumps(case) for case in cases)]
    return [sys.executable, "-m", "tests.plan.measure", *arguments]


def results(processes: list[subprocess.Popen[bytes]], out: Path) -> list[Any]:
    """Wait for all ranks and read the results of rank 0; if a rank fails or hangs, all are killed."""
    try:
        for process in processes:
            assert process.wait(LIMIT_S) == 0, "a rank failed; its output is above"
    finally:
        for process in processes:
            process.kill()
    return list(json.loads(out.read_text()))


def measure_here(
    quantity: str, cases: list[list[str]], ranks: int, out: Path, accelerator: str = "cpu"
) -> list[Any]:
    """Measure every case on ranks of this machine."""
    port = forks.free_port()
    processes = [
        subprocess.Popen(
            measuring(quantity, out, cases),
            env={**os.environ, **rank_environment(rank, ranks, "127.0.0.1", port, accelerator)},
        )
        for rank in range(ranks)
    ]
    return results(processes, out)
