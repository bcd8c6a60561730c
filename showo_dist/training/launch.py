"""Joining the process group that DeepSpeed needs, and leaving a failed run with one clear line."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from showo_dist.tokenizer.ranks import Ranks, joined

USER_ERROR = 2  # exit code for what the config, a file or the command line should have said
_SIBLING_GRACE_S = 2.0  # a launcher ends the other ranks well within it once rank 0 has failed


@contextmanager
def process_group() -> Iterator[Ranks]:
    """As :func:`showo_dist.tokenizer.ranks.joined`, with a group of one when there is no launcher."""
    with joined() as ranks:
        alone = not dist.is_initialized()
        if alone:
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield ranks
        finally:
            if alone:
                dist.destroy_process_group()


def exit_plainly(run: Callable[[], int]) -> None:
    """Run and exit. What a user can mend is one line on stderr, not a traceback on every rank.

    All ranks see most mistakes alike: rank 0 speaks at once, any other only if it is still alive a moment
    later, which means that the mistake is its own. The process then ends without waiting for others that may
    be stuck in a collective.
    """
    try:
        code = run()
    except (ValueError, OSError) as error:
        rank = int(os.environ.get("RANK", 0))
        if rank:
            time.sleep(_SIBLING_GRACE_S)
        where = f" (rank {rank})" if rank else ""
        print(f"showo_dist.train{where}: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(USER_ERROR)
    sys.exit(code)
