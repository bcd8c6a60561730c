"""``showo-dist config FILE [key=value ...]``: print the resolved config, or say what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from showo_dist.config.loader import load, to_yaml


def main(arguments: Sequence[str]) -> int:
    """Print the resolved YAML on stdout; what is still to be filled in, and warnings, on stderr.

    Raises:
        ValueError: one line per problem.
    """
    config = load(arguments, check=False)
    config.check(for_training=False)
    print(to_yaml(config), end="")
    for line in config.to_fill_in():
        print(f"to fill in before training: {line}", file=sys.stderr)
    for line in config.warnings():
        print(f"warning: {line}", file=sys.stderr)
    return 0
