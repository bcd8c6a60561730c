"""What DeepSpeed compiles, where, and the lock that a killed compilation leaves behind."""

import os
import sys
import time
from pathlib import Path

# A lock this old belongs to a process that died: compiling takes one to two minutes.
STALE_S = 600.0


def use_own_folder() -> Path:
    """Compile into the environment's own folder, unless told otherwise: other environments build others."""
    default = str(Path(sys.prefix) / "torch_extensions")
    return Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", default))


def clear_stale_locks(folder: Path, stale_s: float = STALE_S) -> list[Path]:
    """Remove locks that nobody holds any more; torch would wait for them for ever. Returns them."""
    stale = []
    for lock in folder.glob("*/lock"):
        try:
            if time.time() - lock.stat().st_mtime > stale_s:
                lock.unlink()
                stale.append(lock)
        except FileNotFoundError:
            continue  # its owner was quicker
    return stale


def without_inference_helper() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives at every start; before its engine is made.

    Only inference uses them. A run that is killed while it holds the lock of the build would
    make the next start wait for the lock.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}
