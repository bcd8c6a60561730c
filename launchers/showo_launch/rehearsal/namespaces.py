"""Linux namespaces that live exactly as long as the first process in them."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from showo_launch.rehearsal.programs import call

# The first process of a set of namespaces. A shell that waits also reaps the orphans it is handed.
_FIRST_PROCESS = "echo up; exec >/dev/null; sleep infinity & wait"
_UP_WITHIN_S = 30.0


@dataclass(frozen=True)
class Namespaces:
    """Network, mount, host name, IPC and process namespaces of their own.

    Nothing of them has a name and nothing is written to disk: when the first process ends, the kernel ends
    every process inside, and with the last one the interfaces and mounts are gone. The first process
    is killed when ours dies, however that happens, so that nothing can be left behind.

    Attributes:
        holder: our child, through which they were opened.
        pid: their first process, as seen by us.
    """

    holder: subprocess.Popen[str]
    pid: int

    @property
    def root(self) -> Path:
        """Their file system, as seen by us."""
        return Path(f"/proc/{self.pid}/root")

    def entered(self) -> list[str]:
        """The words before a command that shall run inside."""
        kinds = ("--mount", "--uts", "--ipc", "--net", "--pid")
        return ["nsenter", "--target", str(self.pid), *kinds, "--"]

    def call(self, *words: str, timeout_s: float = 30.0) -> str:
        """Run a program inside to its end; as ``programs.call``."""
        return call([*self.entered(), *words], timeout_s)

    def call_on_network(self, *words: str) -> str:
        """Run a program on their network, but with our files and process ids."""
        return call(["nsenter", "--target", str(self.pid), "--net", "--", *words])

    @property
    def alive(self) -> bool:
        """Whether they still exist."""
        return self.holder.poll() is None

    def kill(self) -> None:
        """End everything inside, at once."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self.holder.wait()


def open_namespaces(inside: Namespaces | None = None) -> Namespaces:
    """New namespaces with nothing in them but their first process.

    To be called from a thread that lives on: they die with it.

    Args:
        inside: others, on whose end these end too.

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
        start_new_session=True,  # Ctrl-C is for the command that is being rehearsed
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
