"""What happens to the hosts while a command runs on them: ``60:kill:host3``, a minute after its start."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from showo_launch.rehearsal.cluster import Cluster

Action = Literal["kill", "boot", "cut", "mend"]


@dataclass(frozen=True, order=True)
class Event:
    """One thing that happens to one host.

    Attributes:
        after_s: seconds since the command was started.
        action: ``kill`` its power, ``boot`` it again, ``cut`` its network, or ``mend`` that.
        host: its name.
    """

    after_s: float
    action: Action
    host: str

    @classmethod
    def parse(cls, text: str) -> "Event":
        """Read ``SECONDS:ACTION:HOST``.

        Raises:
            ValueError: it says something else.
        """
        seconds, _, rest = text.partition(":")
        action, _, host = rest.partition(":")
        for known in get_args(Action):
            if action == known and host and _is_time(seconds):
                return cls(float(seconds), known, host)
        actions = "|".join(get_args(Action))
        raise ValueError(f"event {text!r}: SECONDS:{actions}:HOST is allowed, as 60:kill:host3")

    def happen(self, cluster: Cluster) -> None:
        """Do it to the host."""
        act = {
            "kill": cluster.kill,
            "boot": cluster.boot,
            "cut": cluster.cut,
            "mend": cluster.mend,
        }
        act[self.action](self.host)


def _is_time(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def wait(process: subprocess.Popen[bytes], cluster: Cluster, events: Sequence[Event]) -> int:
    """Let the events happen while the command runs; returns its exit code, as a shell gives it."""
    start = time.monotonic()
    for event in sorted(events):
        try:
            process.wait(max(0.0, start + event.after_s - time.monotonic()))
            break
        except subprocess.TimeoutExpired:
            print(f"rehearse: {event.action} {event.host}", flush=True)
            event.happen(cluster)
    code = process.wait()
    return code if code >= 0 else 128 - code
