"""``showo-dist tokenizer config=FILE key=value …``: train an image tokenizer.

``python -m showo_dist.tokenizer``, for launchers that start modules."""

import sys
from collections.abc import Sequence

from showo_dist.config.loader import load
from showo_dist.runtime.exits import exit_plainly
from showo_dist.runtime.ranks import joined
from showo_dist.tokenizer.config import TokenizerConfig
from showo_dist.tokenizer.trainer import Trainer


def main(argv: Sequence[str]) -> int:
    """Train as the config says, on the ranks that the launcher started (one without a launcher).

    Raises:
        ValueError, OSError: what the user can mend, for the caller to print as one line.
    """
    config = load(argv, TokenizerConfig)
    with joined() as ranks:
        Trainer(config, ranks).train()
    return 0


if __name__ == "__main__":
    exit_plainly("showo_dist.tokenizer", lambda: main(sys.argv[1:]))
