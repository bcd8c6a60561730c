"""Folders of code that is compiled while training, and the locks that a killed compilation leaves behind."""

import os
import socket
import sys
import time
from pathlib import Path

from showo_kernels.folders import make_private

# A lock older than this belongs to a dead process: compiling takes one to two minutes.
STALE_S = 600.0


def use_own_folder() -> Path:
    """Compile into this environment's own folder, unless ``TORCH_EXTENSIONS_DIR`` is set."""
    default = str(Path(sys.prefix) / "torch_extensions")
    return Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", default))


def check_cache_folders() -> None:
    """Refuse folders of Triton and Inductor, which the launchers place below /tmp, that others can write.

    Raises:
        ValueError: names host, folder and environment variable.
    """
    for setting in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        if named := os.environ.get(setting):
            try:
                make_private(Path(named), setting)
            except OSError as error:
                raise ValueError(f"host {socket.gethostname()}: {error}") from None


def clear_stale_locks(folder: Path, stale_s: float = STALE_S) -> list[Path]:
    """Remove locks of dead processes, which torch would wait for without end; returns them."""
    stale = []
    for lock in folder.glob("*/lock"):
        try:
            if time.time() - lock.stat().st_mtime > stale_s:
                lock.unlink()
                stale.append(lock)
        except FileNotFoundError:
            continue  # another process removed it first
    return stale
