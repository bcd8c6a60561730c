"""A rank that is slower than the others, in real processes: the run continues, and its log names the rank."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from showo_dist.logging import read_metrics
from showo_launch.exit_codes import PREEMPTED
from tests.faults.processes import Life, start
from tests.training.conftest import TinyWorld

LIMIT_S = 600.0
RANKS, SLOW = 3, 1
STOPPED_S, RUNNING_S = 0.18, 0.012  # in turn: the rank runs a sixteenth of the time


@contextmanager
def _slowed(life: Life, rank: int) -> Iterator[None]:
    """Stop one rank most of the time, as on a machine that another program keeps busy."""
    done = threading.Event()

    def pulse() -> None:
        while not done.is_set():
            life.send(signal.SIGSTOP, rank)
            time.sleep(STOPPED_S)
            life.send(signal.SIGCONT, rank)
            time.sleep(RUNNING_S)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _logged(life: Life) -> list[str]:
    return [
        line["event"]
        for line in read_metrics(life.run / "events.jsonl")
        if " is slow" in line["event"]
    ]


@pytest.mark.slow
def test_a_slow_rank_is_named(tiny_world: TinyWorld, tmp_path: Path) -> None:
    arguments = [
        f"config={tiny_world.config}",
        f"experiment.output_dir={tmp_path / 'run'}",
        "training.max_train_steps=1000000",
        "experiment.log_every=5",
    ]
    life = start(arguments, tmp_path / "run", RANKS)
    try:
        life.wait_for_step(10, LIMIT_S)
        with _slowed(life, SLOW):
            until = time.monotonic() + LIMIT_S
            while not _logged(life):
                assert time.monotonic() < until, life.printed()
                time.sleep(0.1)
        life.send(signal.SIGTERM, 0)
        assert life.codes(LIMIT_S) == [PREEMPTED] * RANKS, life.printed()
    finally:
        life.end()
    name = f"rank {SLOW} (host {socket.gethostname()}) is slow: "
    assert all(line.startswith(name) for line in _logged(life)), _logged(life)
    reports = read_metrics(life.run / "metrics.jsonl")
    slow = [r for r in reports if r["rank_s_max"] > 1.5 * r["rank_s_median"]]
    assert len(slow) >= 3 and {r["slowest_rank"] for r in slow[-3:]} == {SLOW}
