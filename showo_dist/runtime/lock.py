"""The lock on a folder: one run writes there at a time, and a dead one does not keep the folder."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock

from showo_data.files import written_aside
from showo_dist.runtime.ranks import Ranks

NAME = ".owner.json"
_GUARD = ".owner.lock"
_BEAT_S = 5.0
_SILENT_S = 30.0  # an owner on another machine, or in another container, is dead after it
_GRACE_S = 5.0  # for an owner on this machine that is just ending


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder.

    Attributes:
        host, pid: for the user.
        machine: where the process id is valid: this start of the system, and the namespace of process ids.
        ticks: when the process began, in the kernel's clock; a process id may be given to another one.
        since: local time at which it took the folder.
    """

    host: str
    pid: int
    machine: str
    ticks: int
    since: str

    @classmethod
    def this_process(cls) -> Self:
        """This process, from now on."""
        pid = os.getpid()
        began = started_at(pid)
        assert began is not None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), pid, _machine(), began, since)

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """The owner that a folder names; None where there is none, or a file that cannot be understood."""
        with suppress(FileNotFoundError, ValueError, TypeError):
            return cls(**json.loads((folder / NAME).read_text()))
        return None

    def is_alive(self, folder: Path) -> bool:
        """Whether the owner lives; waits until it is certain.

        On this machine the system knows. On another machine a living owner touches its file, which is waited
        for; no two clocks are compared.
        """
        here = self.machine == _machine()
        until = time.monotonic() + (_GRACE_S if here else _SILENT_S)
        first = _touched(folder)
        while time.monotonic() < until and Owner.of(folder) == self:
            if here and started_at(self.pid) != self.ticks:
                return False
            if not here and _touched(folder) != first:
                return True
            time.sleep(0.2)
        return here and Owner.of(folder) == self


@contextmanager
def held(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Hold a folder for all ranks; collective.

    Raises:
        ValueError, OSError: as :func:`locked`, on every rank.
    """
    with ExitStack() as stack:
        ranks.first_alone(lambda: stack.enter_context(locked(folder)))
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is created if absent.

    Raises:
        ValueError: a living process holds it; the message names host, process id and start time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = Owner.this_process()
    # The guard is held while an owner is replaced, so that of two newcomers one sees the other.
    with ExitStack() as guard:
        with suppress(NotImplementedError, OSError):  # some network disks have no locks
            guard.enter_context(FileLock(folder / _GUARD, timeout=2 * _SILENT_S))
        before = Owner.of(folder)
        if before is not None and before.is_alive(folder):
            raise ValueError(
                f"{folder}: a run on host {before.host}, pid {before.pid}, writes there since "
                f"{before.since}; end it first, or name another folder"
            )
        with written_aside(folder / NAME) as file:
            file.write(json.dumps(asdict(own)).encode())
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(folder, own, ended), name="lock", daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join(_GRACE_S)
        if Owner.of(folder) == own:
            with suppress(OSError):
                (folder / NAME).unlink()


def _beat(folder: Path, own: Owner, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_S):
        with suppress(OSError):
            if Owner.of(folder) == own:
                os.utime(folder / NAME)


def _touched(folder: Path) -> int:
    with suppress(OSError):
        return (folder / NAME).stat().st_mtime_ns
    return 0


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def started_at(pid: int) -> int | None:
    """When a process began, in clock ticks since the start of the system; None for a dead one.

    A process id may be given to another process, but not together with the same time.
    """
    fields = _fields(pid)
    return int(fields[19]) if fields else None


def parent_of(pid: int) -> int | None:
    """The parent of a process, which changes when it dies; None for a dead process."""
    fields = _fields(pid)
    return int(fields[1]) if fields else None


def _fields(pid: int) -> list[str] | None:
    """Fields of ``/proc/PID/stat`` from the state on (proc(5)); None for a dead process, a zombie too."""
    try:
        # The name comes first, in parentheses, and may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields
