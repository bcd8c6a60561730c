"""Linux namespaces that exist exactly as long as the first process in them."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from showo_launch.rehearsal.programs import call

# The first process of a set of namespaces. A shell that waits also reaps orphans, which become its children.
_FIRST_PROCESS = "echo up; exec >/dev/null; sleep infinity & wait"
_UP_WITHIN_S = 30.0


@dataclass(frozen=True)
class Namespaces:
    """A set of network, mount, host name, IPC and process namespaces.

    They have no names, and nothing is written to disk. When the first process ends, the kernel kills every
    process inside, and with the last one removes the interfaces and mounts. The first process is killed when
    this process dies, however that happens, so nothing can be left behind.

    Attributes:
        holder: the child process that created them.
        pid: process id of their first process, on this machine.
    """

    holder: subprocess.Popen[str]
    pid: int

    @property
    def root(self) -> Path:
        """The path of their file system on this machine."""
        return Path(f"/proc/{self.pid}/root")

    def entered(self) -> list[str]:
        """The words that make the command after them run inside."""
        kinds = ("--mount", "--uts", "--ipc", "--net", "--pid")
        return ["nsenter", "--target", str(self.pid), *kinds, "--"]

    def call(self, *words: str, timeout_s: float = 30.0) -> str:
        """Run a program inside until it ends; see :func:`showo_launch.rehearsal.programs.call`."""
        return call([*self.entered(), *words], timeout_s)

    def call_on_network(self, *words: str) -> str:
        """Run a program in their network, but with the files and process ids of this machine."""
        return call(["nsenter", "--target", str(self.pid), "--net", "--", *words])

    @property
    def alive(self) -> bool:
        """Whether the first process runs."""
        return self.holder.poll() is None

    def kill(self) -> None:
        """Kill every process inside."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self.holder.wait()


def open_namespaces(inside: Namespaces | None = None) -> Namespaces:
    """Create namespaces that contain only their first process.

    Call it from a thread that outlives them: they end with that thread.

    Args:
        inside: namespaces to nest these in; they end together.

    Raises:
        OSError: the kernel refuses.
    """
    unshare = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork"]
    unshare += ["--kill-child", "--mount-proc", "bash", "-c", _FIRST_PROCESS]
    entered = inside.entered() if inside else []
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *entered, *unshare],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the rehearsed command only
    )
    assert holder.stdout and holder.stderr
    with holder.stdout, holder.stderr:
        if holder.stdout.readline() != "up\n":
            raise OSError(f"no namespaces on this machine: {holder.stderr.read().strip()}")
    # Entering process namespaces forks once, opening new ones once more.
    return Namespaces(holder, _descendant(holder.pid, 2 if inside else 1))


def _descendant(pid: int, generations: int) -> int:
    """The only child of the only child ... of a process."""
    for _ in range(generations):
        pid = _only_child(pid)
    return pid


def _only_child(pid: int) -> int:
    deadline = time.monotonic() + _UP_WITHIN_S
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline, f"process {pid} has no child"
        time.sleep(0.01)
    return int(found[0])
