"""A process that holds the folder of a run, and a command that must not write there meanwhile."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HOLD = """
import sys, time
from pathlib import Path
from showo_dist.runtime.lock import locked
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except ValueError as error:
    print(error, flush=True)
"""


@contextmanager
def holding(folder: Path, seconds: float = 600) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder, or is refused."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def said(holder: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def refused_then_done(folder: Path, command: Callable[[], int]) -> None:
    """Check that a command is refused in one line beside a living owner of its folder, not a dead one."""
    with holding(folder) as holder:
        assert said(holder) == "held"
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        with pytest.raises(ValueError, match=rf"pid {holder.pid}, writes there since") as raised:
            command()
        assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
        after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert after.keys() == before.keys(), "nothing was written beside the owner"
        holder.send_signal(signal.SIGKILL)
        assert command() == 0
