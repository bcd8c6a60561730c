"""What the kernel knows about processes of this machine."""

from pathlib import Path


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
