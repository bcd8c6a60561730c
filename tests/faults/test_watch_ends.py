"""How watching ends: no thread is left after success, a lost rank is named, a suspended run continues."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed import DistBackendError, DistNetworkError

from showo_dist.faults.watch import lost_contact
from showo_launch.exit_codes import RANK_LOST
from tests.forks import free_port

LIMIT_S = 120.0  # for anything, on a busy machine

SCRIPT = """
import sys, threading
from pathlib import Path
from showo_dist.faults.progress import Progress
from showo_dist.faults.signals import StopRequest
from showo_dist.faults.watch import Settings, watched
from showo_dist.runtime.exits import run_and_exit
from showo_dist.runtime.ranks import joined

settings = Settings(timeout_s=60, long_s=60, folder=Path(sys.argv[1]), program="test")

def run():
    with joined() as ranks:
        with watched(ranks, Progress(), settings, StopRequest()):
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


@contextmanager
def _both(script: str, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Two ranks that run the script; they are killed when the context closes."""
    port = str(free_port())
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def _both_print(script: str, folder: Path) -> list[str]:
    """What each of two ranks prints that run the script to its end."""
    with _both(script, folder) as ranks:
        printed = [rank.communicate(timeout=LIMIT_S)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
    return printed


# Arguments: FOLDER HANGS STEP_S LAST_S and TIMEOUT_S of each rank. Rank 1 stops itself in step HANGS.
# A step takes STEP_S, and LAST_S once its rank is asked to stop; the run then ends.
STEPS = """
import os, signal, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from showo_dist.faults.progress import Progress
from showo_dist.faults.signals import StopRequest
from showo_dist.faults.watch import Settings, watched
from showo_dist.runtime.exits import run_and_exit
from showo_dist.runtime.ranks import joined

folder, hangs, step_s, last_s, *timeouts = sys.argv[1], *map(float, sys.argv[2:])
settings = Settings(timeouts[int(os.environ["RANK"])], 600, folder=Path(folder), program="test")
progress = Progress()

def run():
    with StopRequest() as stop, joined() as ranks, watched(ranks, progress, settings, stop):
        for step in range(1, 1_000_000):
            progress.begin_step(step)
            print(step, stop.reason, flush=True)
            time.sleep(last_s if stop else step_s)
            if step == hangs and ranks.rank == 1:
                time.sleep(3)  # the others must know the step before
                os.kill(os.getpid(), signal.SIGSTOP)
            stops = torch.tensor(float(bool(stop)))
            dist.all_reduce(stops)
            if stops and last_s:
                break
    return 0

run_and_exit("test", run)
"""


def _wait_for(rank: subprocess.Popen[str], word: str) -> None:
    """Read a rank's lines until one begins with ``word``."""
    assert rank.stdout is not None
    for line in rank.stdout:
        if line.startswith(word):
            return
    raise AssertionError(rank.communicate()[1])


def test_a_launcher_that_stops_the_survivors_leaves_time_to_name_the_lost_rank(
    tmp_path: Path,
) -> None:
    """The collective does not fail, as with NCCL, and a launcher kills after 30 seconds."""
    with _both(STEPS, tmp_path, 3, 0.05, 0, 600, 600) as ranks:
        _wait_for(ranks[0], "3 ")
        time.sleep(3)
        ranks[0].terminate()
        began = time.monotonic()
        _, printed = ranks[0].communicate(timeout=LIMIT_S)
        assert time.monotonic() - began < 25
        assert ranks[0].returncode == RANK_LOST, printed
        assert f"rank 1 (host {socket.gethostname()}, pid {ranks[1].pid})" in printed
        assert len(list(tmp_path.glob("step-000003-rank-00000.txt"))) == 1


def test_a_rank_in_a_long_step_is_not_lost_when_all_are_stopped(tmp_path: Path) -> None:
    """The step takes longer than the silence that identifies a lost rank."""
    with _both(STEPS, tmp_path, 0, 0.05, 8, 600, 600) as ranks:
        _wait_for(ranks[0], "3 ")
        for rank in ranks:
            rank.terminate()
        printed = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], printed


@pytest.mark.slow
def test_a_run_that_was_suspended_blames_no_rank(tmp_path: Path) -> None:
    """Rank 1 reads the heartbeats when rank 0 has stopped, and gets the old ones when both continue.

    Rank 0 sends one a second. Rank 1 reads three, so that it mostly has the last one before.
    """
    with _both(STEPS, tmp_path, 0, 2, 0, 20, 6) as ranks:
        _wait_for(ranks[0], "3 ")
        for rank in ranks:
            rank.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
        time.sleep(6)
        for rank in reversed(ranks):
            rank.send_signal(signal.SIGCONT)
            time.sleep(0.5)
        for rank in ranks:
            _wait_for(rank, "7 ")


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
