"""Standard output and error that outlast a full disk and a closed pipe: what cannot be written is dropped."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


class _Forgiving(io.FileIO):
    """A descriptor for writing that drops text instead of raising an OSError.

    Args:
        descriptor: stays open.
        name: for the warning.
        warn: print one line on stderr when text is dropped for the first time.

    Attributes:
        lost: the error for which text was dropped first, if any.
    """

    def __init__(self, descriptor: int, name: str, warn: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._name, self._warn = name, warn
        self.lost: OSError | None = None

    def write(self, data: object) -> int:
        """Write, or drop; returns the number of bytes."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            # A pipe that does not block and is full writes None.
            return super().write(data) or size  # type: ignore[arg-type]
        except OSError as error:
            if self._warn and self.lost is None:
                print(
                    f"{self._name}: {error.strerror}; lines are lost, the work continues",
                    file=sys.stderr,
                    flush=True,
                )
            self.lost = self.lost or error
            return size


_stdout: _Forgiving | None = None


def forgive_output(warn: bool) -> None:
    """Let this process outlast errors of its standard output and error; call it once, at the start.

    Args:
        warn: print one line on stderr when stdout fails.
    """
    global _stdout
    # A closed descriptor would be given to the next file opened, and prints would end in that file.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    _stdout = _Forgiving(1, "stdout", warn)
    sys.stdout = _text(_stdout, sys.stdout)
    sys.stderr = _text(_Forgiving(2, "stderr", False), sys.stderr, line_buffering=True)


def lost_output() -> OSError | None:
    """The error for which text for stdout was dropped so far, if any was."""
    flush()
    return None if _stdout is None else _stdout.lost


def flush() -> None:
    """Flush stdout and stderr, whatever they are."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _text(raw: _Forgiving, before: TextIO | None, line_buffering: bool = False) -> io.TextIOWrapper:
    with suppress(OSError, AttributeError):
        before.flush()  # type: ignore[union-attr]
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
    )
