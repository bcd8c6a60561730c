"""Convert LLaVA's JSON and its image folder; the pretraining and the tuning set have the same layout."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from showo_data.convert.images import image_member, read_bytes
from showo_data.convert.items import Item, Members
from showo_data.members import BadSampleError, read_conversation

# Characters read at a time from the JSON file.
_CHUNK = 1 << 20
# Characters of the longest element: one that is still incomplete then is broken.
_LONGEST = 64 << 20
_SEPARATORS = re.compile(r"[\s,]*")


def llava_items(
    path: str | Path, images: str | Path, *, max_side: int | None = None
) -> Iterator[Item]:
    """Yield conversations about images.

    Items without an image are skipped, as in the published loader, and counted as ``text-only``. Items whose
    image cannot be read are skipped as well, where the published loader uses a black image.

    Args:
        path: a JSON list of ``{"id": …, "image": "coco/…/x.jpg", "conversations": […]}``.
        images: the folder that ``image`` is relative to.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError: ``path`` or ``images`` does not exist.
        ValueError: ``path`` is not a JSON list.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(images)!r}")
    for number, entry in enumerate(read_array(path)):
        yield Item(f"{path}, item {number}", partial(_load, entry, folder.resolve(), max_side))


def _load(entry: Any, folder: Path, max_side: int | None) -> list[Members]:
    if not isinstance(entry, dict):
        raise BadSampleError("malformed-item")
    if "image" not in entry:
        raise BadSampleError("text-only")
    data = _conversation(entry)
    image = _inside(folder, entry["image"])
    return [{**image_member(read_bytes(image), max_side), "json": data}]


def _conversation(entry: dict[str, Any]) -> bytes:
    """Return the JSON member, after the same check as in training."""
    kept = {"conversations": entry.get("conversations")}
    try:
        data = json.dumps(kept, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadSampleError("not-utf8") from None
    read_conversation({"json": data}.get)
    return data


def _inside(folder: Path, name: Any) -> Path:
    """Return the path of an image, which must be in the folder, whatever the JSON contains."""
    if not isinstance(name, str):
        raise BadSampleError("malformed-item")
    path = folder / name
    if not path.resolve().is_relative_to(folder):
        raise BadSampleError("image-outside-folder")
    return path


def read_array(path: str | Path) -> Iterator[Any]:
    """Yield the elements of the JSON list in a file, which may be larger than memory.

    Bytes that are not UTF-8 become surrogates, so that a bad element does not affect the others.

    Raises:
        ValueError: the file holds no list, or is broken; the message has the number of elements before.
    """
    decoder, count, at = json.JSONDecoder(), 0, 1
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        text = stream.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise ValueError(f"{path}: expected a JSON list")
        while True:
            at = _end_of_separators(text, at)
            if text.startswith("]", at):
                return
            try:
                value, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                # The element may end in a part of the file that is not read yet.
                more = stream.read(_CHUNK)
                if not more or len(text) - at > _LONGEST:
                    raise ValueError(f"{path}: broken JSON after {count} elements") from None
                text, at = text[at:] + more, 0
                continue
            count += 1
            yield value


def _end_of_separators(text: str, at: int) -> int:
    match = _SEPARATORS.match(text, at)
    assert match is not None  # it also matches the empty text
    return match.end()
