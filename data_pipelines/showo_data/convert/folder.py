"""One's own pictures: a folder, with a text file beside each picture where there are captions."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from showo_data.convert.items import Item, Members
from showo_data.convert.pictures import SUFFIXES, picture_member, read_bytes
from showo_data.members import TEXTS


def folder_items(source: str | Path, *, max_side: int | None = None) -> Iterator[Item]:
    """All pictures below ``source``, folder by folder in the order of their names.

    ``x.txt`` (or ``x.text``, ``x.caption``) beside ``x.jpg`` is its caption.

    Args:
        source: the folder.
        max_side: see :func:`showo_data.convert.pictures.picture_member`.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"no folder {str(source)!r}")
    for folder, subfolders, files in os.walk(source):
        subfolders.sort()  # os.walk goes on in this order
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES:
                yield Item(str(path), partial(_load, path, max_side))


def _load(path: Path, max_side: int | None) -> list[Members]:
    members: Members = dict(picture_member(read_bytes(path), max_side))
    for extension in TEXTS:
        text = path.with_suffix(f".{extension}")
        if text.is_file():
            members["txt"] = text.read_bytes()
            break
    return [members]
