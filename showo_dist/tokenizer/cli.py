"""``showo-dist tokenizer config=FILE key=value …``: train an image tokenizer."""

import os
import sys
import time
from collections.abc import Sequence

from showo_dist.config.loader import load
from showo_dist.tokenizer.config import TokenizerConfig
from showo_dist.tokenizer.ranks import joined
from showo_dist.tokenizer.trainer import Trainer

_FIRST_RANK_SPEAKS_S = 5.0


def main(argv: Sequence[str]) -> int:
    """Train as the config says, on the ranks that the launcher started (one without a launcher).

    Raises:
        ValueError, OSError: what the user can mend, for the caller to print as one line.
    """
    config = load(argv, TokenizerConfig)
    with joined() as ranks:
        Trainer(config, ranks).train()
    return 0


def run(argv: Sequence[str]) -> int:
    """As :func:`main`, for launchers: a mistake is one line and exit code 2.

    All ranks see most mistakes alike. The first speaks at once; another one only if the launcher has not
    ended it a moment later, which means that the mistake is its own.
    """
    try:
        return main(argv)
    except (ValueError, OSError) as error:
        rank = int(os.environ.get("RANK", 0))
        if rank:
            time.sleep(_FIRST_RANK_SPEAKS_S)
        where = f" (rank {rank})" if rank else ""
        print(f"showo_dist.tokenizer{where}: {error}", file=sys.stderr, flush=True)
        return 2
