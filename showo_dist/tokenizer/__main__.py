"""``python -m showo_dist.tokenizer``, for launchers that start modules."""

import sys

from showo_dist.runtime.exits import exit_plainly
from showo_dist.tokenizer.cli import main

if __name__ == "__main__":
    exit_plainly("showo_dist.tokenizer", lambda: main(sys.argv[1:]))
