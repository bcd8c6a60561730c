"""``showo-dist doctor [--hostfile FILE]``: check the hosts of a run before it starts."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from showo_launch.doctor.examination import Examination, Examiner, Limits
from showo_launch.doctor.sessions import find_hosts


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="showo-dist doctor",
        description="Check the hosts of a hostfile, of the Slurm allocation, or this host alone.",
    )
    add = parser.add_argument
    add(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="DeepSpeed's hostfile; its hosts are reached by ssh",
    )
    add(
        "--shared",
        nargs="+",
        default=[str(Path.cwd())],
        metavar="DIR",
        help="folders that must be the same on all hosts: run folder, data (default: this folder)",
    )
    add(
        "--scratch",
        nargs="+",
        default=[tempfile.gettempdir()],
        metavar="DIR",
        help="folders of each host's own; only their free space is checked (default: %(default)s)",
    )
    add(
        "--free-gb",
        type=float,
        default=20.0,
        metavar="GB",
        help="least free space (default: %(default)g)",
    )
    add(
        "--skew-s",
        type=float,
        default=1.0,
        metavar="S",
        help="largest clock skew (default: %(default)g)",
    )
    add("--port", type=int, default=29500, metavar="P", help="master port (default: %(default)s)")
    add(
        "--gbit",
        type=float,
        metavar="G",
        help="least bandwidth between hosts, Gb/s (default: a third of the fastest pair's)",
    )
    add(
        "--megabytes",
        type=float,
        default=64.0,
        metavar="MB",
        help="size of the measured all-reduce",
    )
    add("--quick", action="store_true", help="skip the all-reduce, which loads torch")
    add("--python", default=sys.executable, metavar="PATH", help="interpreter on the hosts")
    add("--timeout-s", type=float, default=120.0, metavar="S", help="of each question to a host")
    return parser


def main(argv: Sequence[str]) -> int:
    """Check the hosts and print the findings; returns exit code 0, or 1 if there is a finding.

    Raises:
        ValueError, OSError: an option or the hostfile is wrong.
    """
    options = vars(parser().parse_args(list(argv)))
    hosts = find_hosts(options.pop("hostfile"))
    console = Console()
    with console.status("") as status:
        result = Examiner(hosts, Limits(**options), status.update).run()
    console.print(_host_table(result))
    if result.speeds:
        console.print(_link_table(result))
    for finding in result.found:
        console.print(f"{finding.host}: {finding.check}: {finding.problem}", highlight=False)
    if not result.found:
        console.print(f"nothing wrong with {len(hosts)} hosts")
    return 1 if result.found else 0


def _host_table(result: Examination) -> Table:
    table = Table(title="hosts")
    columns = ("python", "torch", "deepspeed", "commit", "GPUs", "least free GB", "clock s", "")
    for column in ("host", *columns):
        table.add_column(column)
    bad = {name for finding in result.found for name in finding.host.split("–")}
    for host in result.hosts:
        verdict = "[red]bad[/]" if host.name in bad else "[green]good[/]"
        facts = result.facts.get(host.name)
        if facts is None:
            table.add_row(host.name, *[""] * (len(columns) - 1), verdict)
            continue
        packages = facts["packages"]
        table.add_row(
            host.name,
            facts["python"],
            packages["torch"],
            packages["deepspeed"],
            facts["commit"],
            str(len(facts["gpus"])),
            f"{min(facts['free'].values()) / 1e9:.0f}",
            f"{result.skews[host.name]:+.2f}",
            verdict,
        )
    return table


def _link_table(result: Examination) -> Table:
    table = Table(title="all-reduce between neighbours")
    for column in ("hosts", "Gb/s", "latency ms"):
        table.add_column(column)
    for names, speed in result.speeds.items():
        table.add_row("–".join(names), f"{speed['gbit']:.2f}", f"{speed['latency_ms']:.2f}")
    return table
