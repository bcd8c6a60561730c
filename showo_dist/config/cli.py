"""``showo-dist config FILE [key=value ...]``: print the resolved config, or say what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from showo_dist.config.loader import load, to_yaml
from showo_dist.config.rules import check, missing_data, warnings_about, without_effect


def main(arguments: Sequence[str]) -> int:
    """Print the resolved YAML on stdout; what is still to be filled in, and warnings, on stderr.

    Raises:
        ValueError: one line per problem.
    """
    config = load(arguments, check=False)
    check(config, for_training=False)
    print(to_yaml(config), end="")
    for line in missing_data(config):
        print(f"to fill in before training: {line}", file=sys.stderr)
    for line in without_effect(config):
        print(f"without effect: {line}", file=sys.stderr)
    for line in warnings_about(config):
        print(f"warning: {line}", file=sys.stderr)
    return 0
