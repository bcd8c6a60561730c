"""Ranks of a training as processes, forked from a server that has imported everything: they start fast."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.forks import forking, free_port, rank_environment

# A process that a signal ended has a negative exit code.
KILLED = -signal.SIGKILL


def _train(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Run what ``python -m showo_dist.train`` runs, in a process that a test may kill."""
    os.environ.clear()
    os.environ.update(environment)
    os.setpgrp()
    for stream, path in ((sys.stdout, log), (sys.stderr, log.with_suffix(".err"))):
        with path.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), stream.fileno())
    import torch

    from showo_dist.runtime.exits import run_and_exit
    from showo_dist.train import PROGRAM, main

    torch.set_num_threads(1)
    # As in a process that a launcher starts; a forkserver's would have its data workers from the server.
    multiprocessing.set_start_method("fork", force=True)
    run_and_exit(PROGRAM, lambda: main(arguments))


@dataclass
class Life:
    """The processes of one start of a run.

    Attributes:
        run: the run's folder.
        processes: one per rank.
        logs: what each wrote to stdout; what it wrote to stderr is in ``.err`` beside it.
    """

    run: Path
    processes: list[Any]
    logs: list[Path] = field(default_factory=list)

    def send(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            if self.processes[rank].is_alive():
                os.kill(self.processes[rank].pid, number)

    def codes(self, limit_s: float, ranks: Sequence[int] | None = None) -> list[int]:
        """Wait until ``ranks`` (default: all) have ended and return their exit codes.

        Raises:
            AssertionError: some still run after ``limit_s``; all are killed.
        """
        watched = [
            self.processes[r] for r in (range(len(self.processes)) if ranks is None else ranks)
        ]
        deadline = time.monotonic() + limit_s
        for process in watched:
            process.join(max(0.0, deadline - time.monotonic()))
        alive = [process.name for process in watched if process.is_alive()]
        if alive:
            self.end()
        assert not alive, f"{alive} still run after {limit_s:.0f} s:\n{self.printed()}"
        return [process.exitcode for process in watched]

    def end(self) -> None:
        """Kill the processes that still run."""
        self.send(signal.SIGKILL, *range(len(self.processes)))
        for process in self.processes:
            process.join()

    def printed(self, rank: int | None = None) -> str:
        """The output of all ranks, one after the other, or of one: first stdout, then stderr."""
        return f"{self.stdout(rank)}\n{self.stderr(rank)}"

    def stdout(self, rank: int | None = None) -> str:
        return self._read(rank, ".log")

    def stderr(self, rank: int | None = None) -> str:
        return self._read(rank, ".err")

    def _read(self, rank: int | None, suffix: str) -> str:
        logs = self.logs if rank is None else [self.logs[rank]]
        paths = [log.with_suffix(suffix) for log in logs]
        return "\n".join(path.read_text() for path in paths if path.exists())

    def wait_for_setup(self, limit_s: float) -> None:
        """Wait until rank 0 logs the step at which it starts."""
        deadline = time.monotonic() + limit_s
        while " at step " not in self.printed(0):
            assert time.monotonic() < deadline, f"no start:\n{self.printed()}"
            time.sleep(0.01)

    def wait_for_step(self, step: int, limit_s: float = 120) -> None:
        """Wait until the metrics of ``step`` are in the file."""
        deadline = time.monotonic() + limit_s
        metrics = self.run / "metrics.jsonl"
        while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
            assert time.monotonic() < deadline, f"no step {step}:\n{self.printed()}"
            assert any(p.is_alive() for p in self.processes), self.printed()
            time.sleep(0.01)


def start(arguments: list[str], run: Path, ranks: int, number: int = 0) -> Life:
    """Start all ranks of a training.

    Args:
        arguments: of ``showo_dist.train``.
        run: the run's folder.
        ranks: number of processes.
        number: of this life of the run; part of the names of its logs.
    """
    context = forking()
    life = Life(run, [], [run.with_name(f"{run.name}-{number}-rank-{r}.log") for r in range(ranks)])
    port = free_port()
    for rank in range(ranks):
        environment = {**os.environ, **rank_environment(rank, ranks, port)}
        process = context.Process(
            target=_train, args=(arguments, environment, life.logs[rank]), name=f"rank {rank}"
        )
        process.start()
        life.processes.append(process)
    return life
