"""Folders of compiled code: who may write there, and the locks that a killed compilation leaves behind."""

import os
import socket
import stat
import sys
import time
from pathlib import Path

# A lock older than this belongs to a dead process: compiling takes one to two minutes.
STALE_S = 600.0


def make_private(folder: Path, setting: str) -> None:
    """Create a folder for compiled code, or refuse one where another user could place some.

    Whoever can write there decides what this process runs.

    Args:
        folder: created for this user alone if absent.
        setting: environment variable that names it, for the message.

    Raises:
        OSError: it belongs to another user, everybody may write there, or it cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    reason = None
    if found.st_uid not in (0, os.getuid()):
        reason = f"belongs to another user (uid {found.st_uid})"
    elif found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        reason = "can be written by everybody"
    if reason:
        raise OSError(f"{folder} {reason}; set {setting} to a folder of your own")


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
