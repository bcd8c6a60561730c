"""From what hosts answered to what is wrong, and with which host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from showo_launch.doctor.sessions import Host

# A pair of hosts is slow when the fastest pair is that many times faster.
SLOW_FACTOR = 3.0


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        host: with whom; two hosts are joined by ``–``.
        check: what was looked at.
        problem: what was found, and what it should be.
    """

    host: str
    check: str
    problem: str


def different(check: str, values: Mapping[str, str]) -> list[Finding]:
    """Hosts whose value is not the most frequent one (of equally frequent ones: the first host's)."""
    if len(set(values.values())) < 2:
        return []
    usual, _ = Counter(values.values()).most_common(1)[0]
    return [
        Finding(host, check, f"{value}; others: {usual}")
        for host, value in values.items()
        if value != usual
    ]


def differing_facts(facts: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Hosts that do not run what the others run."""
    found = different("python", {host: said["python"] for host, said in facts.items()})
    for package in next(iter(facts.values()))["packages"]:
        found += different(
            package, {host: said["packages"][package] for host, said in facts.items()}
        )
    found += different("commit", {host: said["commit"] for host, said in facts.items()})
    found += different("source files", {host: said["code"] for host, said in facts.items()})
    kinds = {host: ", ".join(sorted(set(said["gpus"]))) or "none" for host, said in facts.items()}
    return found + different("GPUs and driver", kinds)


def missing_gpus(hosts: Sequence[Host], facts: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Hosts with fewer GPUs than slots, where there are GPUs at all."""
    if not any(said["gpus"] for said in facts.values()):
        return []
    return [
        Finding(host.name, "GPUs", f"{len(facts[host.name]['gpus'])}; the hostfile: {host.slots}")
        for host in hosts
        if host.name in facts and len(facts[host.name]["gpus"]) < host.slots
    ]


def full_disks(facts: Mapping[str, dict[str, Any]], least_gb: float) -> list[Finding]:
    """Folders with less free space than wanted."""
    return [
        Finding(host, "disk", f"{folder}: {free / 1e9:.2f} GB free, wanted {least_gb:g}")
        for host, said in facts.items()
        for folder, free in said["free"].items()
        if free < least_gb * 1e9
    ]


def missing_interface(facts: Mapping[str, dict[str, Any]], wanted: str | None) -> list[Finding]:
    """Hosts without the interface that the environment names."""
    if not wanted:
        return []
    return [
        Finding(host, "interface", f"no {wanted}; it has {', '.join(said['interfaces'])}")
        for host, said in facts.items()
        if wanted not in said["interfaces"]
    ]


def wrong_clocks(skews: Mapping[str, float], most_s: float) -> list[Finding]:
    """Hosts whose clock is not the usual one.

    Args:
        skews: seconds that a host is ahead of this one.
        most_s: allowed from the median.
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
    """Slow pairs, as one finding for a host all of whose pairs are slow.

    Args:
        speeds: ``gbit`` by pair of hosts.
        least_gbit: wanted; None: no pair may be much slower than the fastest.
    """
    if not speeds:
        return []
    fastest = max(speed["gbit"] for speed in speeds.values())
    wanted = least_gbit if least_gbit is not None else fastest / SLOW_FACTOR
    slow = {pair: speed["gbit"] for pair, speed in speeds.items() if speed["gbit"] < wanted}
    names = dict.fromkeys(name for pair in speeds for name in pair)
    guilty = [
        name for name in names if len(_of(name, speeds)) > 1 and _all_slow(name, speeds, slow)
    ]
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


def _all_slow(
    name: str,
    speeds: Mapping[tuple[str, str], Any],
    slow: Mapping[tuple[str, str], float],
) -> bool:
    return _of(name, slow).keys() == _of(name, speeds).keys()


def _than(wanted: float) -> str:
    return f"; wanted: {wanted:.2f}"
