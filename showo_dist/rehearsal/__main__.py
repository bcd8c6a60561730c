"""``python -m showo_dist.rehearsal``, which ``launchers/rehearse`` calls."""

import sys

from showo_dist.rehearsal.cli import main

sys.exit(main())
