"""After a run that succeeded no watching thread is left."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env={**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["MainThread\n"] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]
