"""The checks, in an order in which each can rely on the ones before it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from showo_launch.doctor import findings
from showo_launch.doctor.findings import Finding
from showo_launch.doctor.sessions import Host, HostError, Session


@dataclass(frozen=True)
class Limits:
    """What hosts are held to.

    Attributes:
        shared: folders that all hosts must see alike.
        scratch: folders that each host has for itself.
        free_gb: least free space in each of them.
        skew_s: largest difference of a clock.
        port: that the ranks will meet at.
        gbit: least speed between two hosts; None: none much slower than the fastest.
        megabytes: size of the all-reduce that measures it.
        quick: do without measuring it.
        python: interpreter on the hosts.
        timeout_s: of every answer.
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
    """What was found out.

    Attributes:
        hosts: asked for.
        facts: what each host that answered said about itself.
        skews: seconds that its clock is ahead of ours.
        speeds: ``gbit`` and ``latency_ms`` of pairs of neighbours.
        found: what is wrong.
    """

    hosts: Sequence[Host]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    skews: dict[str, float] = field(default_factory=dict)
    speeds: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)


def clock_skew(session: Session, rounds: int = 5) -> float:
    """Seconds that a host's clock is ahead of ours, of the quickest of a few questions."""
    best = (float("inf"), 0.0)
    for _ in range(rounds):
        before = time.time()
        theirs = session.ask("now")
        after = time.time()
        best = min(best, (after - before, theirs - (before + after) / 2))
    return best[1]


class Examiner:
    """Asks hosts, and notes what is wrong.

    Args:
        hosts: the master first.
        limits: what they are held to.
        say: called with what is being done.
    """

    def __init__(self, hosts: Sequence[Host], limits: Limits, say: Callable[[str], None]) -> None:
        self.result = Examination(hosts)
        self.limits, self._say = limits, say

    def run(self) -> Examination:
        """All checks; a host that stops answering ends them."""
        with ExitStack() as stack, ThreadPoolExecutor(max(1, len(self.result.hosts))) as pool:
            sessions = [
                stack.enter_context(Session(host, self.limits.python, self.limits.timeout_s))
                for host in self.result.hosts
            ]
            self._say("asking every host")
            list(pool.map(self._meet, sessions))
            reached = [s for s in sessions if s.host.name in self.result.facts]
            if reached:
                self._compare()
                try:
                    self._between(reached, pool)
                except HostError as error:
                    self._note(error.host, "answers", str(error))
        return self.result

    def _between(self, sessions: Sequence[Session], pool: ThreadPoolExecutor) -> None:
        """What hosts are to each other: files, port, speed."""
        for folder in self.limits.shared:
            self._say(f"is {folder} shared")
            self._is_shared(folder, sessions)
        if len(sessions) < 2:
            return
        self._say(f"port {self.limits.port} of {sessions[0].host.name}")
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

    def _compare(self) -> None:
        # In the hosts' order, not in that of their answers.
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
            interface = os.environ.get("GLOO_SOCKET_IFNAME")
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
        refused = first.ask("listen", port=port)
        if refused is not None:
            self._note(name, "port", f"{port}: {refused}")
            return False
        address = address_of(first.host)
        answers = list(pool.map(lambda s: s.ask("connect", address=address, port=port), others))
        first.ask("close", port=port)
        for session, problem in zip(others, answers, strict=True):
            if problem is not None:
                self._note(session.host.name, "port", f"cannot reach {name}:{port}: {problem}")
        return not any(answers)

    def _links(self, sessions: Sequence[Session], pool: ThreadPoolExecutor) -> None:
        """Each host with the next; of more than two hosts also the last with the first."""
        self._say("loading torch on every host")
        list(pool.map(lambda session: session.ask("load_torch"), sessions))
        following = [*sessions[1:], *(sessions[:1] if len(sessions) > 2 else [])]
        for number, (left, right) in enumerate(zip(sessions, following, strict=False), start=1):
            names = (left.host.name, right.host.name)
            self._say(f"all-reduce between {names[0]} and {names[1]}")
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
            "address": address_of(left.host),
            "port": port,
            "megabytes": self.limits.megabytes,
            "timeout_s": self.limits.timeout_s / 2,  # so that the probe says why before we give up
        }
        both = [
            pool.submit(session.ask, "all_reduce", rank=rank, **common)
            for rank, session in enumerate((left, right))
        ]
        speeds = [answer.result() for answer in both]
        return min(speeds, key=lambda speed: speed["gbit"])


def address_of(host: Host) -> str:
    """The address that the name stands for here."""
    return socket.gethostbyname(host.name)
