"""``python -m showo_launch.rehearsal``, which ``launchers/rehearse`` calls."""

import sys

from showo_launch.rehearsal.cli import main

sys.exit(main())
