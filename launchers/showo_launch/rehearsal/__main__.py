"""``launchers/rehearse --hosts N -- COMMAND``: create hosts, run a command on the first, take them down.

``--at 60:kill:host3`` changes a host while the command runs, here a minute after its start.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from showo_launch.exit_codes import USER_ERROR
from showo_launch.hostfile import address, read_hostfile
from showo_launch.rehearsal.cluster import Cluster
from showo_launch.rehearsal.network import Link

Action = Literal["kill", "boot", "cut", "reconnect"]
_GRACE_S = 10.0  # after Ctrl-C, for a launcher to stop its ranks
_INTERRUPTED = 130


@dataclass(frozen=True, order=True)
class Event:
    """One change of one host.

    Attributes:
        after_s: seconds since the command was started.
        action: ``kill`` the host, ``boot`` it again, ``cut`` its network, or ``reconnect`` that.
        host: its name.
    """

    after_s: float
    action: Action
    host: str

    @classmethod
    def parse(cls, text: str) -> "Event":
        """Read ``SECONDS:ACTION:HOST``.

        Raises:
            ValueError: the text has another form.
        """
        seconds, _, rest = text.partition(":")
        action, _, host = rest.partition(":")
        for known in get_args(Action):
            if action == known and host and _is_time(seconds):
                return cls(float(seconds), known, host)
        actions = "|".join(get_args(Action))
        raise ValueError(f"event {text!r}: SECONDS:{actions}:HOST is allowed, as 60:kill:host3")

    def apply(self, cluster: Cluster) -> None:
        """Change the host."""
        actions = {
            "kill": cluster.kill,
            "boot": cluster.boot,
            "cut": cluster.cut,
            "reconnect": cluster.reconnect,
        }
        actions[self.action](self.host)


def _is_time(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launchers/rehearse",
        description="Create hosts on this machine, run COMMAND on the first of them, and take them down.",
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
        help="bandwidth and delay of one host's link, or of all",
    )
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="SECONDS:ACTION:HOST",
        help=f"{', '.join(get_args(Action))}: change a host so long after the start",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


def _slots(options: argparse.Namespace) -> dict[str, int]:
    if options.hostfile is not None:
        if options.slots is not None:
            raise ValueError(f"--slots {options.slots}: the slots are those of {options.hostfile}")
        return {address(host): n for host, n in read_hostfile(options.hostfile).items()}
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


def _wait(process: subprocess.Popen[bytes], cluster: Cluster, events: Sequence[Event]) -> int:
    """Apply the events while the command runs; returns its exit code, as a shell gives it."""
    start = time.monotonic()
    for event in sorted(events):
        try:
            process.wait(max(0.0, start + event.after_s - time.monotonic()))
            break
        except subprocess.TimeoutExpired:
            print(f"rehearse: {event.action} {event.host}", flush=True)
            event.apply(cluster)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _stop(number: int, frame: FrameType | None) -> None:
    """Signal handler: exit by an exception, so that the hosts are taken down."""
    sys.exit(128 + number)


def _let_end(process: subprocess.Popen[bytes]) -> None:
    """After Ctrl-C, which the command received too, give it time to end."""
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        print(
            "rehearse: the command still runs after Ctrl-C; ended with the hosts", file=sys.stderr
        )


def rehearse(options: argparse.Namespace) -> int:
    """Run the command on new hosts; returns its exit code.

    Raises:
        ValueError, OSError: an option is wrong, or this machine cannot create hosts.
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
            return _wait(process, cluster, events)
        except KeyboardInterrupt:
            _let_end(process)
            return _INTERRUPTED


def main() -> int:
    """Entry of ``launchers/rehearse``; returns the exit code."""
    options = _parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        return rehearse(options)
    except (ValueError, OSError) as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
