"""How a run on several ranks ends, and the exit codes that say so."""

import atexit
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from showo_launch.exit_codes import REPORTS, USER_ERROR

SIBLING_GRACE_S = 5.0  # a launcher ends the other ranks well within it once rank 0 has failed


class StoppedError(Exception):
    """The run ends here, on all ranks alike; rank 0 says why in one line.

    Args:
        code: exit code.
        message: the line.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class OwnMistakeError(ValueError):
    """What a user can mend, seen by this rank alone: it says so at once, naming rank and host itself."""


def report(code: int | None, lost: Sequence[int] = ()) -> None:
    """Tell the supervisor, where there is one, that this rank runs (None) or ends with ``code``.

    Args:
        code: exit code.
        lost: ranks that died or hang.
    """
    folder = os.environ.get(REPORTS)
    if not folder:
        return
    path = Path(folder) / f"rank-{rank_of_environment():05d}.json"
    aside = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # nobody reads it any more; that must not change how the run ends
        aside.write_text(json.dumps({"pid": os.getpid(), "code": code, "lost": sorted(lost)}))
        aside.replace(path)


def rank_of_environment() -> int:
    """What a launcher said about this process, before there is a process group."""
    return int(os.environ.get("RANK", 0))


def exit_plainly(program: str, run: Callable[[], int]) -> None:
    """Run and exit. What a user can mend is one line on stderr, not a traceback on every rank.

    All ranks see most mistakes alike: rank 0 speaks at once, any other only if it is still alive a moment
    later, which means that the mistake is its own. The process then ends without waiting for others that may
    be stuck in a collective.

    The interpreter is never torn down. A process group outlives its destruction where DeepSpeed still refers
    to it, and a thread of gloo's that lets go of the last collective's tensors in an interpreter that is gone
    aborts a run that was good (pytorch/pytorch#190489).

    Args:
        program: what the line begins with.
        run: gives the exit code.
    """
    code = 1  # of an error that nobody foresaw
    atexit.register(lambda: leave(code))  # the handlers registered from now on come before it
    report(None)
    try:
        code = run()
    except StoppedError as stopped:
        if rank_of_environment() == 0:
            _say(f"{program}: {stopped}")
        leave(stopped.code)
    except (ValueError, OSError) as error:
        rank = rank_of_environment()
        report(USER_ERROR)
        own = isinstance(error, OwnMistakeError)
        if rank and not own:
            time.sleep(SIBLING_GRACE_S)
        _say(f"{program}{f' (rank {rank})' if rank and not own else ''}: {error}")
        leave(USER_ERROR)
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        raise
    sys.exit(code)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def leave(code: int, lost: Sequence[int] = ()) -> NoReturn:
    """End this process now, from any thread, whatever its other threads wait for."""
    report(code, lost)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
