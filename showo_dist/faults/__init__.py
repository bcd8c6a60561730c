"""Faults of a long run, handled by all ranks together: signals, lost and slow ranks, bad samples."""

import os

# Silence torch's C++ stack dump on a lost connection; the lost rank is reported in one line. torch reads the
# variable when it is loaded.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
