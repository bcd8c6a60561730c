"""A compilation that was killed does not hang the next run."""

import os
import time
from pathlib import Path

from showo_kernels.folders import STALE_S, clear_stale_locks


def test_only_locks_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    for name in ("dead", "alive", "unlocked"):
        (tmp_path / name).mkdir()
    dead, alive = tmp_path / "dead" / "lock", tmp_path / "alive" / "lock"
    dead.touch()
    alive.touch()
    long_ago = time.time() - STALE_S - 1
    os.utime(dead, (long_ago, long_ago))
    assert clear_stale_locks(tmp_path) == [dead]
    assert not dead.exists() and alive.exists()


def test_no_folder_is_fine(tmp_path: Path) -> None:
    assert clear_stale_locks(tmp_path / "none") == []
