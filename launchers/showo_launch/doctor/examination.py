"""Run the checks, in an order in which each can rely on the ones before it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from showo_launch.doctor import findings
from showo_launch.doctor.findings import Finding
from showo_launch.doctor.sessions import Host, HostError, Session, passed_variables


@dataclass(frozen=True)
class Limits:
    """What is checked, and the limits.

    Attributes:
        shared: folders that must be the same on all hosts.
        scratch: folders of each host's own.
        free_gb: least free space in each of these folders, GB.
        skew_s: largest difference of a clock from the median, seconds.
        port: port of the master.
        gbit: least bandwidth between two hosts, Gb/s; None: compare the pairs with the fastest one.
        megabytes: size of the all-reduce that measures it.
        quick: skip the all-reduce.
        python: interpreter on the hosts.
        timeout_s: of each question to a host.
    """

    shared: Sequence[str]
    scratch: Sequence[str]
    free_gb: float
    skew_s: float
    port: int
    gbit: float | None
    megabytes: float
    quick: bool
    python: str
    timeout_s: float


@dataclass
class Examination:
    """The result of all checks.

    Attributes:
        hosts: all hosts.
        facts: of each host that answered, see :func:`showo_launch.doctor.probe.facts`.
        skews: seconds that its clock is ahead of ours.
        speeds: ``gbit`` and ``latency_ms`` of pairs of neighbours.
        found: the findings.
    """

    hosts: Sequence[Host]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    skews: dict[str, float] = field(default_factory=dict)
    speeds: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)


def clock_skew(session: Session, rounds: int = 5) -> float:
    """Seconds that a host's clock is ahead of ours, from the fastest of a few round trips."""
    best = (float("inf"), 0.0)
    for _ in range(rounds):
        before = time.time()
        theirs = session.ask("now")
        after = time.time()
        best = min(best, (after - before, theirs - (before + after) / 2))
    return best[1]


class Examiner:
    """Asks the hosts and collects the findings.

    Args:
        hosts: the master first.
        limits: what is checked.
        log: called with one line as each check starts.
    """

    def __init__(self, hosts: Sequence[Host], limits: Limits, log: Callable[[str], None]) -> None:
        self.result = Examination(hosts)
        self.limits, self._log = limits, log

    def run(self) -> Examination:
        """Run all checks; a host that stops answering ends them early.

        Raises:
            ValueError: the hosts have no addresses of their own.
        """
        hosts, limits = self.result.hosts, self.limits
        variables = passed_variables(hosts)
        with ExitStack() as stack, ThreadPoolExecutor(max(1, len(hosts))) as pool:
            sessions = [
                stack.enter_context(Session(host, limits.python, limits.timeout_s, variables))
                for host in hosts
            ]
            self._log("asking every host")
            list(pool.map(self._meet, sessions))
            reached = [s for s in sessions if s.host.name in self.result.facts]
            if reached:
                self._compare({**os.environ, **variables}.get("GLOO_SOCKET_IFNAME"))
                try:
                    self._between(reached, pool)
                except HostError as error:
                    self._note(error.host, "answers", str(error))
        return self.result

    def _between(self, sessions: Sequence[Session], pool: ThreadPoolExecutor) -> None:
        """Checks between hosts: shared folders, the master's port, bandwidth."""
        for folder in self.limits.shared:
            self._log(f"is {folder} shared")
            self._is_shared(folder, sessions)
        if len(sessions) < 2:
            return
        self._log(f"port {self.limits.port} of {sessions[0].host.name}")
        if self._port_is_open(sessions, pool) and not self.limits.quick:
            self._links(sessions, pool)

    def _note(self, host: str, check: str, problem: str) -> None:
        self.result.found.append(Finding(host, check, problem))

    def _meet(self, session: Session) -> None:
        name = session.host.name
        folders = [*self.limits.shared, *self.limits.scratch]
        try:
            facts = session.ask("facts", folders=folders)
            self.result.skews[name] = clock_skew(session)
            self.result.facts[name] = facts
        except HostError as error:
            self._note(name, "reachable", str(error))

    def _compare(self, interface: str | None) -> None:
        # In the order of the hosts, not of their answers.
        facts = {
            h.name: self.result.facts[h.name]
            for h in self.result.hosts
            if h.name in self.result.facts
        }
        limits = self.limits
        self.result.found += [
            *findings.differing_facts(facts),
            *findings.missing_gpus(self.result.hosts, facts),
            *findings.full_disks(facts, limits.free_gb),
            *findings.wrong_clocks(
                {name: self.result.skews[name] for name in facts}, limits.skew_s
            ),
        ]
        if len(facts) > 1:
            self.result.found += findings.missing_interface(facts, interface)

    def _is_shared(self, folder: str, sessions: Sequence[Session]) -> None:
        first, *others = sessions
        try:
            token = first.ask("write_token", folder=folder)
        except HostError as error:
            self._note(first.host.name, "shared", f"{folder}: cannot be written to: {error}")
            return
        try:
            for session in others:
                if not session.ask("sees", path=token):
                    problem = f"{folder} is not the folder that {first.host.name} has"
                    self._note(session.host.name, "shared", problem)
        finally:
            first.ask("remove", path=token)

    def _port_is_open(self, sessions: Sequence[Session], pool: ThreadPoolExecutor) -> bool:
        first, *others = sessions
        port, name = self.limits.port, first.host.name
        address = first.host.resolve()
        refused = first.ask("listen", address=address, port=port)
        if refused is not None:
            self._note(name, "port", f"{port}: {refused}")
            return False
        answers = list(pool.map(lambda s: s.ask("connect", address=address, port=port), others))
        first.ask("close", port=port)
        for session, problem in zip(others, answers, strict=True):
            if problem is not None:
                self._note(session.host.name, "port", f"cannot reach {name}:{port}: {problem}")
        return not any(answers)

    def _links(self, sessions: Sequence[Session], pool: ThreadPoolExecutor) -> None:
        """Measure each host with the next one; with more than two hosts also the last with the first."""
        self._log("loading torch on every host")
        answers = pool.map(lambda session: session.ask("load_torch"), sessions)
        for session, problem in zip(sessions, answers, strict=True):
            if problem is not None:
                self._note(session.host.name, "GPUs", problem)
        following = [*sessions[1:], *(sessions[:1] if len(sessions) > 2 else [])]
        for number, (left, right) in enumerate(zip(sessions, following, strict=False), start=1):
            names = (left.host.name, right.host.name)
            self._log(f"all-reduce between {names[0]} and {names[1]}")
            try:
                self.result.speeds[names] = self._speed(
                    left, right, self.limits.port + number, pool
                )
            except HostError as error:
                self._note("–".join(names), "all-reduce", str(error))
        self.result.found += findings.slow_links(self.result.speeds, self.limits.gbit)

    def _speed(
        self, left: Session, right: Session, port: int, pool: ThreadPoolExecutor
    ) -> dict[str, float]:
        common = {
            "address": left.host.resolve(),
            "port": port,
            "megabytes": self.limits.megabytes,
            "timeout_s": self.limits.timeout_s / 2,  # the probe gives up first, and reports why
        }
        both = [
            pool.submit(session.ask, "all_reduce", rank=rank, **common)
            for rank, session in enumerate((left, right))
        ]
        wait(both)  # also if one failed: the next pair must not find the other's question open
        speeds = [answer.result() for answer in both]
        return min(speeds, key=lambda speed: speed["gbit"])
