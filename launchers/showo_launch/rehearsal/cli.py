"""``launchers/rehearse --hosts N -- COMMAND``: run a command on the first of several hosts made here."""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from showo_launch.hostfile import read_hostfile
from showo_launch.rehearsal.cluster import Cluster
from showo_launch.rehearsal.network import Link
from showo_launch.rehearsal.timeline import Event, wait

# A launcher that got Ctrl-C too may still want to tell its ranks.
_GRACE_S = 10.0
_INTERRUPTED = 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launchers/rehearse",
        description="Bring up hosts on this machine, run COMMAND on the first of them, and take them down.",
    )
    hosts = parser.add_mutually_exclusive_group(required=True)
    hosts.add_argument("--hosts", type=int, metavar="N", help="host1 … hostN")
    hosts.add_argument(
        "--hostfile", type=Path, metavar="FILE", help="names and slots from a hostfile"
    )
    parser.add_argument(
        "--slots", type=int, metavar="S", help="ranks per host in $HOSTFILE, 1 (with --hosts)"
    )
    parser.add_argument("--slurm", action="store_true", help="run Slurm on the hosts")
    parser.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="[HOST:]rate=R,delay=D",
        help="speed and delay of a host's link, or of all",
    )
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="SECONDS:ACTION:HOST",
        help="kill, boot, cut or mend a host that long after the start",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


def _slots(options: argparse.Namespace) -> dict[str, int]:
    if options.hostfile is not None:
        if options.slots is not None:
            raise ValueError(f"--slots {options.slots}: the slots are those of {options.hostfile}")
        return read_hostfile(options.hostfile)
    slots = 1 if options.slots is None else options.slots
    for name, value in (("--hosts", options.hosts), ("--slots", slots)):
        if value < 1:
            raise ValueError(f"{name} {value}: 1 or more")
    return {f"host{number + 1}": slots for number in range(options.hosts)}


def _links(texts: Sequence[str], names: Sequence[str]) -> dict[str, Link]:
    links: dict[str, Link] = {}
    for text in texts:
        host, _, link = text.rpartition(":")
        links |= {name: Link.parse(link) for name in ([host] if host else names)}
    return links


def _events(texts: Sequence[str], names: Sequence[str]) -> list[Event]:
    events = [Event.parse(text) for text in texts]
    for event in events:
        if event.host not in names:
            raise ValueError(f"--at …:{event.host}: the hosts are {', '.join(names)}")
    return events


def _stop(number: int, frame: FrameType | None) -> None:
    """End as if interrupted, so that the hosts are taken down."""
    sys.exit(128 + number)


def rehearse(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        ValueError, OSError: what the user or this machine has to change.
    """
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise ValueError("no command: launchers/rehearse --hosts 3 -- COMMAND")
    slots = _slots(options)
    names = list(slots)
    links, events = _links(options.link, names), _events(options.at, names)
    begin = time.monotonic()
    with Cluster(slots, links, options.slurm) as cluster:
        print(f"rehearse: {len(names)} hosts in {time.monotonic() - begin:.1f} s", file=sys.stderr)
        process = cluster.start(names[0], command)
        try:
            return wait(process, cluster, events)
        except KeyboardInterrupt:
            _let_end(process)
            return _INTERRUPTED


def _let_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        print("rehearse: the command goes on after Ctrl-C, ended with the hosts", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry of ``launchers/rehearse``; returns the exit code."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        return rehearse(options)
    except (ValueError, OSError) as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 2
