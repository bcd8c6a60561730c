"""``python -m showo_dist.tokenizer``, for launchers that start modules."""

import sys

from showo_dist.tokenizer.cli import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
