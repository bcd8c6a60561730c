"""How a run on several ranks ends when a user has to mend something."""

import os
import sys
import time
from collections.abc import Callable

USER_ERROR = 2  # exit code for what the config, a file or the command line should have said
_SIBLING_GRACE_S = 5.0  # a launcher ends the other ranks well within it once rank 0 has failed


def exit_plainly(program: str, run: Callable[[], int]) -> None:
    """Run and exit. What a user can mend is one line on stderr, not a traceback on every rank.

    All ranks see most mistakes alike: rank 0 speaks at once, any other only if it is still alive a moment
    later, which means that the mistake is its own. The process then ends without waiting for others that may
    be stuck in a collective.

    Args:
        program: what the line begins with.
        run: gives the exit code.
    """
    try:
        code = run()
    except (ValueError, OSError) as error:
        rank = int(os.environ.get("RANK", 0))
        if rank:
            time.sleep(_SIBLING_GRACE_S)
        where = f" (rank {rank})" if rank else ""
        print(f"{program}{where}: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(USER_ERROR)
    sys.exit(code)
