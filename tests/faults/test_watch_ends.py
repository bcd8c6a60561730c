"""How watching ends: no thread is left after success, and some errors mean that another rank is lost."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import DistBackendError, DistNetworkError

from showo_dist.faults.watch import lost_contact

SCRIPT = """
import sys, threading
from pathlib import Path
from showo_dist.faults.progress import Progress
from showo_dist.faults.watch import Settings, watched
from showo_dist.runtime.exits import run_and_exit
from showo_dist.runtime.ranks import joined

settings = Settings(timeout_s=60, long_s=60, folder=Path(sys.argv[1]), program="test")

def run():
    with joined() as ranks:
        with watched(ranks, Progress(), settings):
            pass
        print(*(thread.name for thread in threading.enumerate()))
    return 0

run_and_exit("test", run)
"""


def test_the_watching_threads_end_before_the_process_does(tmp_path: Path) -> None:
    """A thread that returns from the store after the interpreter's end would abort the process."""
    assert _both_print(SCRIPT, tmp_path) == ["MainThread\n"] * 2


def test_after_an_error_no_rank_waits_for_the_others_in_order_to_leave_the_group(
    tmp_path: Path,
) -> None:
    """With NCCL, destroying the group waits for all ranks of the host."""
    script = """
import torch.distributed as dist
from showo_dist.runtime.ranks import joined
try:
    with joined():
        raise ValueError("of one rank")
except ValueError:
    print(dist.is_initialized())
"""
    assert _both_print(script, tmp_path) == ["True\n"] * 2


def _both_print(script: str, folder: Path) -> list[str]:
    """What each of two ranks prints that run the script to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            env={**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return printed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            DistBackendError(
                "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.27.5\n"
                "ncclUnhandledCudaError: Call to CUDA function failed.\n"
                "Last error:\nCuda failure 2 'out of memory'"
            ),
            False,
        ),
        (
            DistBackendError(
                "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error\n"
                "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
                "prematurely."
            ),
            True,
        ),
        (DistNetworkError("The client socket has timed out after 60000ms"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_an_error_of_this_rank_is_not_taken_for_a_lost_one(
    error: Exception, expected: bool
) -> None:
    assert lost_contact(error) == expected
