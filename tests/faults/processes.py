"""Ranks of a training as processes of their own, started cheaply: forks of a server that has all imported."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A signal that ends a process shows as a negative exit code.
KILLED = -signal.SIGKILL


def _train(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """What ``python -m showo_dist.train`` does, in a process that a test may do anything to."""
    os.environ.update(environment)
    os.setpgrp()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    import torch

    from showo_dist.runtime.exits import exit_plainly
    from showo_dist.train import PROGRAM, main

    torch.set_num_threads(1)
    exit_plainly(PROGRAM, lambda: main(arguments))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a launcher tells a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


@dataclass
class Life:
    """The processes of one start of a run.

    Attributes:
        run: the run's folder.
        processes: one per rank.
        logs: what each printed.
    """

    run: Path
    processes: list[Any]
    logs: list[Path] = field(default_factory=list)

    def send(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            if self.processes[rank].is_alive():
                os.kill(self.processes[rank].pid, number)

    def codes(self, limit_s: float, ranks: Sequence[int] | None = None) -> list[int]:
        """Exit codes once all of ``ranks`` (default: all) have ended by themselves.

        Raises:
            AssertionError: they have not in time; all are killed.
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
        """Kill what is left."""
        self.send(signal.SIGKILL, *range(len(self.processes)))
        for process in self.processes:
            process.join()

    def printed(self, rank: int | None = None) -> str:
        """What ranks printed, one after the other."""
        logs = self.logs if rank is None else [self.logs[rank]]
        return "\n".join(log.read_text() for log in logs if log.exists())

    def wait_for_setup(self, limit_s: float) -> None:
        """Until the first rank says where it starts."""
        deadline = time.monotonic() + limit_s
        while " at step " not in self.printed(0):
            assert time.monotonic() < deadline, f"no start:\n{self.printed()}"
            time.sleep(0.01)

    def wait_for_step(self, step: int, limit_s: float = 120) -> None:
        """Until the metrics of ``step`` are in the file."""
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
        number: of this life of the run; its logs are called by it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["showo_dist.train", "showo_dist.training.trainer"])
    life = Life(run, [], [run.with_name(f"{run.name}-{number}-rank-{r}.log") for r in range(ranks)])
    port = free_port()
    for rank in range(ranks):
        environment = environment_of(rank, ranks, port)
        process = context.Process(
            target=_train, args=(arguments, environment, life.logs[rank]), name=f"rank {rank}"
        )
        process.start()
        life.processes.append(process)
    return life
