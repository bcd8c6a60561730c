"""Folders of compiled code: whoever can write there decides what this process runs."""

import os
import stat
from pathlib import Path


def make_private(folder: Path, setting: str) -> None:
    """Create a folder for compiled code, or refuse one where another user could place some.

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
