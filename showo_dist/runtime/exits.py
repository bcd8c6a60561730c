"""How a run on several ranks ends: one line for the user, an exit code, and a report for the supervisor."""

import atexit
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from showo_dist.runtime.streams import flush, forgive_output
from showo_launch.exit_codes import MACHINE_ERROR, REPORTS, USER_ERROR

SIBLING_GRACE_S = 5.0  # a launcher ends the other ranks well within it once rank 0 has failed


class StoppedError(Exception):
    """The run stops here on all ranks; rank 0 prints the reason.

    Args:
        code: exit code.
        message: the reason, one line.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class OneRankError(ValueError):
    """A user's mistake that only this rank sees; it prints it at once. The message names rank and host."""


class MachineError(OSError):
    """The machine failed, not the user: the run ends with a code after which it is started again."""


# Errors of the system that show a wrong path, so that the user has to change something. Every other OSError
# is the machine's: a full disk, a lost connection, a dead data worker.
_WRONG_PATH = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
    *(PermissionError, FileExistsError),
)
_WRONG_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


def exit_code_of(error: ValueError | OSError) -> int:
    """The exit code after an error that is one line: of a user's mistake, or of a fault of the machine."""
    if isinstance(error, (ValueError, *_WRONG_PATH)) or error.errno in _WRONG_NAME:
        return USER_ERROR
    return MACHINE_ERROR


def described(error: BaseException) -> str:
    """The error in one line: with its path, or with the place in the code where the system gives none."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "showo_" in f.filename), None)
    return f"{error.strerror}" + (f" ({place.filename}, line {place.lineno})" if place else "")


@contextmanager
def machine_errors() -> Iterator[None]:
    """Once a run trains, its paths were right: every OSError inside is the machine's.

    Raises:
        MachineError: for any OSError.
    """
    try:
        yield
    except OSError as error:
        raise MachineError(described(error)) from error


def report(code: int | None, lost: Sequence[int] = ()) -> None:
    """Report to the supervisor, if there is one, that this rank runs (None) or ends with ``code``.

    Args:
        code: exit code.
        lost: ranks that died or hang.
    """
    folder = os.environ.get(REPORTS)
    if not folder:
        return
    path = Path(folder) / f"rank-{rank_of_environment():05d}.json"
    aside = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # a failed report must not change how the run ends
        aside.write_text(json.dumps({"pid": os.getpid(), "code": code, "lost": sorted(lost)}))
        aside.replace(path)


def rank_of_environment() -> int:
    """This process's rank according to its launcher, before there is a process group."""
    return int(os.environ.get("RANK", 0))


def run_and_exit(program: str, run: Callable[[], int]) -> None:
    """Run and exit. A user's mistake, or a fault of the machine, becomes one line on stderr instead of a
    traceback on every rank.

    All ranks see most mistakes: rank 0 prints the line at once, another rank only if it still runs a few
    seconds later, because then the mistake is its own. The process does not wait for ranks that may hang in a
    collective. A full disk or a closed pipe behind stdout does not end the run.

    The interpreter is never torn down. A process group outlives its destruction while DeepSpeed refers to it,
    and a gloo thread that releases the last collective's tensors after the interpreter's end aborts a run
    that succeeded (pytorch/pytorch#190489).

    Args:
        program: begins the line.
        run: returns the exit code.
    """
    forgive_output(warn=True)
    code = 1  # of an unexpected error
    atexit.register(lambda: leave(code))  # atexit runs it after the handlers registered from now on
    report(None)
    try:
        code = run()
    except StoppedError as stopped:
        if rank_of_environment() == 0:
            _print_error(f"{program}: {stopped}")
        leave(stopped.code)
    except (ValueError, OSError) as error:
        rank = rank_of_environment()
        code = exit_code_of(error)
        report(code)
        own = isinstance(error, OneRankError)
        if rank and not own:
            time.sleep(SIBLING_GRACE_S)
        name = f"{program} (rank {rank})" if rank and not own else program
        _print_error(f"{name}: {described(error)}")
        leave(code)
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        raise
    sys.exit(code)


def _print_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def leave(code: int, lost: Sequence[int] = ()) -> NoReturn:
    """Report, then end this process at once, from any thread, whatever its other threads wait for."""
    report(code, lost)
    flush()
    os._exit(code)
