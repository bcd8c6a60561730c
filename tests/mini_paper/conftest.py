"""The parts of ``benchmarks/mini_paper.py`` can be imported."""

import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
