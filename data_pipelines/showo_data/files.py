"""Write files and folders atomically, and note in a folder which settings it is written with.

A reader sees a file or folder under its name only once it is complete and on the disk: it is written under
a hidden name beside the target, which ends in ``.partial``, and then renamed.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

_DIGEST_LENGTH = 64  # hexadecimal digits of a SHA-256


@contextmanager
def written_aside(target: Path) -> Iterator[BinaryIO]:
    """Open a file that is renamed to ``target`` when the block succeeds and deleted when it fails.

    An existing ``target`` is replaced. Several threads and processes may write it; the last one wins.

    Raises:
        OSError: it cannot be written; ``filename`` is set.
    """
    # Not the process id: threads, and processes of several hosts, may write the same target.
    aside = target.with_name(f".{target.name}.{os.urandom(8).hex()}.partial")
    try:
        with aside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(target)
    except OSError as error:
        error.filename = error.filename or str(target)  # writing to a full disk names no file
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Make an empty folder that is renamed to ``target`` when the block succeeds and deleted when it fails.

    Only one process may write a target at a time: the unfinished folder of a killed one is deleted first.

    Args:
        target: parent folders are created as needed.
        replace: delete an existing ``target`` just before the rename.

    Raises:
        OSError: ``target`` is a folder with files in it, and ``replace`` is false.
    """
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        if replace:
            shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Delete the files that killed writers (:func:`written_aside`) left; none may be at work there.

    Args:
        folder: where to look.
        name: only for this target in ``folder``; None: for any target in it and in its subfolders.
    """
    found = folder.glob(f".{escape(name)}.*.partial") if name else folder.rglob(".*.*.partial")
    for path in found:
        path.unlink(missing_ok=True)


def claim(folder: Path, name: str, settings: Mapping[str, Any], what: str) -> None:
    """Note ``settings`` in ``folder``, or check that the folder was begun with the same ones.

    Args:
        folder: created when it is missing.
        name: file for the settings, as JSON.
        settings: everything that decides the content of the folder.
        what: the content in a word or two, for the message: "a mini world".

    Raises:
        ValueError: the folder was begun with other settings; the message names those that differ.
    """
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as stream:
            stream.write(json.dumps(settings, indent=2).encode() + b"\n")
        return
    differences = unlike(json.loads(path.read_text()), settings)
    if differences:
        raise ValueError(
            f"{folder} holds {what} with {differences} ({name}): "
            "name another folder, or remove this one"
        )


def unlike(
    noted: Mapping[str, Any], settings: Mapping[str, Any], ignored: Collection[str] = ()
) -> str:
    """List the settings that differ, as "seed 0, not 1; images 10, not 20"; empty when none does.

    Args:
        noted: settings that were read from JSON.
        settings: the present ones; lists and tuples are equal, as in JSON.
        ignored: keys that may differ.
    """
    now = json.loads(json.dumps(settings))
    keys = [
        key for key in {**noted, **now} if key not in ignored and noted.get(key) != now.get(key)
    ]
    return "; ".join(f"{key} {_shown(noted.get(key))}, not {_shown(now.get(key))}" for key in keys)


def _shown(value: object) -> str:
    """The value as in Python; of a SHA-256, which nobody compares by eye, the first 8 digits."""
    if isinstance(value, str) and len(value) == _DIGEST_LENGTH:
        return f"{value[:8]}…"
    return repr(value)
