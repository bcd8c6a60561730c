"""``showo-dist tokenizer config=FILE key=value …``: train an image tokenizer.

Launchers that start modules run ``python -m showo_dist.tokenizer``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from showo_dist.config.loader import load
from showo_dist.runtime.exits import run_and_exit
from showo_dist.runtime.lock import held
from showo_dist.runtime.ranks import joined
from showo_dist.tokenizer.config import TokenizerConfig
from showo_dist.tokenizer.trainer import Trainer


def main(argv: Sequence[str]) -> int:
    """Train on the ranks that the launcher started; without a launcher, on one.

    Raises:
        ValueError, OSError: errors that a user can fix; the caller prints them as one line.
    """
    config = load(argv, TokenizerConfig)
    with joined() as ranks, held(ranks, Path(config.experiment.output_dir)):
        Trainer(config, ranks).train()
    return 0


if __name__ == "__main__":
    run_and_exit("showo_dist.tokenizer", lambda: main(sys.argv[1:]))
