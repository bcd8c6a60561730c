"""Convert LLaVA's JSON and its image folder; the pretraining and the tuning set have the same layout."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from showo_data.convert.elements import BROKEN, BrokenFileError, read_array
from showo_data.convert.images import image_member, numbered_members, read_bytes
from showo_data.convert.items import REST, Item, Members, bad_item
from showo_data.members import IMAGE_MARKER, BadSampleError, check_places, read_conversation

# Roles of other chat formats → LLaVA's.
_ROLES = {"user": "human", "assistant": "gpt"}


def llava_items(
    path: str | Path, images: str | Path, *, max_side: int | None = None
) -> Iterator[Item]:
    """Yield conversations about images; several ones are numbered, in the order of their markers.

    Items without an image are skipped, as in the published loader, and counted as ``text-only``. Items whose
    image cannot be read are skipped as well, where the published loader uses a black image. Where the JSON
    is broken for good, the items before are converted, and the rest counts as one ``unreadable-rest``.

    Args:
        path: a JSON list of ``{"id": …, "image": "coco/…/x.jpg", "conversations": […]}``; ``image`` may be a
            list.
        images: the folder that ``image`` is relative to.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError: ``path`` or ``images`` does not exist.
        ValueError: ``path`` is not a JSON list.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(images)!r}")
    try:
        for number, (entry, mark) in enumerate(read_array(path)):
            load = partial(_load, entry, folder.resolve(), max_side)
            yield Item(f"{path}, item {number}", load, mark)
    except BrokenFileError as broken:
        yield bad_item(f"{path}, from item {broken.count} on", REST)


def _load(entry: Any, folder: Path, max_side: int | None) -> list[Members]:
    if entry is BROKEN:
        raise BadSampleError("broken-json")
    if not isinstance(entry, dict):
        raise BadSampleError("malformed-item")
    names = _image_names(entry.get("image"))
    data = _conversation(entry)
    # A single image needs no marker: it is before its conversation.
    places = max(1, sum(turn["value"].count(IMAGE_MARKER) for turn in entry["conversations"]))
    check_places(places, list(range(len(names))), places)
    images = [read_bytes(inside_folder(folder, name)) for name in names]
    single = len(images) == 1
    found = image_member(images[0], max_side) if single else numbered_members(images, max_side)
    return [{**found, "json": data}]


def _image_names(value: Any) -> list[str]:
    """Return the paths of the item's images; a null or an empty text is no path."""
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str | None) for name in names):
        raise BadSampleError("malformed-item")
    if not any(names):
        raise BadSampleError("text-only")
    if not all(names):  # without the image of one marker, the others would be at wrong ones
        raise BadSampleError("no-image")
    return names


def _conversation(entry: dict[str, Any]) -> bytes:
    """Return the JSON member, after the same check as in training."""
    rounds = entry.get("conversations")
    if isinstance(rounds, list):
        rounds = [_with_llava_role(turn) for turn in rounds]
    try:
        data = json.dumps({"conversations": rounds}, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadSampleError("not-utf8") from None
    read_conversation({"json": data}.get)
    return data


def _with_llava_role(turn: Any) -> Any:
    role = turn.get("from") if isinstance(turn, dict) else None
    return {**turn, "from": _ROLES[role]} if isinstance(role, str) and role in _ROLES else turn


def inside_folder(folder: Path, name: str) -> Path:
    """Return the path of an image, which must be in the folder, whatever the JSON contains.

    Links in the folder may lead anywhere: to where the images are, or to the cache of the Hugging Face hub.

    Raises:
        BadSampleError: it is not.
    """
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        raise BadSampleError("image-outside-folder")
    return path
