"""A process group that runs many cases and is killed when one of them hangs."""

import time
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from tests.forks import forking, free_port, rank_environment
from tests.single_pass.case import Case, Report
from tests.single_pass.rank import serve

LIMIT_S = 120.0


class HangError(AssertionError):
    """A case exceeded its time limit."""


class RankGroup:
    """``size`` processes joined by gloo. After a failure the next case starts new ones.

    Args:
        size: number of ranks.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> "RankGroup":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def run(self, case: Case, limit_s: float = LIMIT_S) -> list[Report]:
        """Run a case and return the reports of all ranks.

        Raises:
            HangError: a rank did not finish in time; the group is killed.
            AssertionError: a rank failed; the group is killed, because other ranks may wait for it.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send(case)
        try:
            return self._collect(case, time.monotonic() + limit_s)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []

    def _start(self) -> None:
        context, port = forking(), free_port()
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            environment = rank_environment(rank, self.size, port)
            process = context.Process(target=serve, args=(theirs, environment), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        # The time limit of a case starts after this.
        assert all(pipe.poll(LIMIT_S) and pipe.recv() for pipe in self._pipes), "no process group"

    def _collect(self, case: Case, deadline: float) -> list[Report]:
        reports: dict[Connection, Report] = {}
        while len(reports) < self.size:
            silent = [pipe for pipe in self._pipes if pipe not in reports]
            ready = wait(silent, max(0.0, deadline - time.monotonic()))
            if not ready:
                ranks = [self._pipes.index(pipe) for pipe in silent]
                raise HangError(f"{case} on {self.size} ranks hangs; no report of ranks {ranks}")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                reports[pipe] = self._receive(pipe, case)
        return [reports[pipe] for pipe in self._pipes]

    def _receive(self, pipe: Connection, case: Case) -> Report:
        rank = self._pipes.index(pipe)
        try:
            report, problem = pipe.recv()
        except EOFError:
            raise AssertionError(f"{case}: rank {rank} of {self.size} died") from None
        assert problem is None, f"{case}: rank {rank} of {self.size}:\n{problem}"
        return report
