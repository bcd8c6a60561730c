"""Compare the answers of the hosts: which host differs, lacks something, or is slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from showo_launch.doctor.sessions import Host

# A pair of hosts is slow when the fastest pair is this many times faster.
SLOW_FACTOR = 3.0


@dataclass(frozen=True)
class Finding:
    """One problem of one host, or of a pair of hosts.

    Attributes:
        host: its name; a pair is joined by ``–``.
        check: name of the check.
        problem: what was found, and what was expected.
    """

    host: str
    check: str
    problem: str


def different(check: str, values: Mapping[str, str]) -> list[Finding]:
    """Hosts whose value is not the most frequent one; of equally frequent values the first host's counts."""
    if len(set(values.values())) < 2:
        return []
    usual, _ = Counter(values.values()).most_common(1)[0]
    return [
        Finding(host, check, f"{value}; others: {usual}")
        for host, value in values.items()
        if value != usual
    ]


def differing_facts(facts: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Hosts whose Python, packages, source files or GPUs differ from the others'."""
    found = different("python", {host: own["python"] for host, own in facts.items()})
    for package in next(iter(facts.values()))["packages"]:
        found += different(package, {host: own["packages"][package] for host, own in facts.items()})
    found += different("commit", {host: own["commit"] for host, own in facts.items()})
    found += different("source files", {host: own["code"] for host, own in facts.items()})
    kinds = {host: ", ".join(sorted(set(own["gpus"]))) or "none" for host, own in facts.items()}
    return found + different("GPUs and driver", kinds)


def missing_gpus(hosts: Sequence[Host], facts: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Hosts with fewer GPUs than slots, if any host has a GPU."""
    if not any(own["gpus"] for own in facts.values()):
        return []
    return [
        Finding(host.name, "GPUs", f"{len(facts[host.name]['gpus'])}; the hostfile: {host.slots}")
        for host in hosts
        if host.name in facts and len(facts[host.name]["gpus"]) < host.slots
    ]


def full_disks(facts: Mapping[str, dict[str, Any]], least_gb: float) -> list[Finding]:
    """Folders with less free space than ``least_gb``."""
    return [
        Finding(host, "disk", f"{folder}: {free / 1e9:.2f} GB free, wanted {least_gb:g}")
        for host, own in facts.items()
        for folder, free in own["free"].items()
        if free < least_gb * 1e9
    ]


def missing_interface(facts: Mapping[str, dict[str, Any]], wanted: str | None) -> list[Finding]:
    """Hosts without a network interface of ``wanted``, names joined by commas as gloo reads them.

    gloo compares whole names, and uses all of them: one that a host lacks ends its ranks.
    """
    found = []
    names = wanted.split(",") if wanted else []
    for host, own in facts.items():
        absent = [name for name in names if name not in own["interfaces"]]
        if absent:
            problem = f"no {', '.join(absent)}; it has {', '.join(own['interfaces'])}"
            found.append(Finding(host, "interface", problem))
    return found


def wrong_clocks(skews: Mapping[str, float], most_s: float) -> list[Finding]:
    """Hosts whose clock is more than ``most_s`` from the median.

    Args:
        skews: seconds that each host is ahead of this one.
        most_s: seconds.
    """
    usual = sorted(skews.values())[(len(skews) - 1) // 2]
    return [
        Finding(host, "clock", f"{skew - usual:+.1f} s from the others; allowed: {most_s:g}")
        for host, skew in skews.items()
        if abs(skew - usual) > most_s
    ]


def slow_links(
    speeds: Mapping[tuple[str, str], Mapping[str, float]], least_gbit: float | None
) -> list[Finding]:
    """Slow pairs of hosts; a host all of whose pairs are slow is one finding.

    Args:
        speeds: ``gbit`` by pair of hosts.
        least_gbit: least bandwidth; None: that of the fastest pair divided by :data:`SLOW_FACTOR`.
    """
    if not speeds:
        return []
    fastest = max(speed["gbit"] for speed in speeds.values())
    wanted = least_gbit if least_gbit is not None else fastest / SLOW_FACTOR
    slow = {pair: speed["gbit"] for pair, speed in speeds.items() if speed["gbit"] < wanted}
    names = dict.fromkeys(name for pair in speeds for name in pair)
    guilty = [name for name in names if 1 < len(_of(name, speeds)) == len(_of(name, slow))]
    found = [
        Finding(name, "link", f"{max(_of(name, slow).values()):.2f} Gb/s at best{_than(wanted)}")
        for name in guilty
    ]
    for pair, gbit in slow.items():
        if not set(pair) & set(guilty):
            found.append(Finding("–".join(pair), "link", f"{gbit:.2f} Gb/s{_than(wanted)}"))
    return found


def _of(name: str, pairs: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    return {pair: value for pair, value in pairs.items() if name in pair}


def _than(wanted: float) -> str:
    return f"; wanted: {wanted:.2f}"
