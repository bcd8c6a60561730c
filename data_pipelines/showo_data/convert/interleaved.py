"""Convert documents with images among the text, in the layouts of OBELICS and MMC4."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from showo_data.convert.images import numbered_members, read_bytes
from showo_data.convert.items import FILE, Item, Members, Pieces, bad_item, find_files
from showo_data.convert.llava import inside_folder
from showo_data.convert.parquet import ParquetFiles, ParquetRows, UnreadableFileError
from showo_data.convert.text import json_lines
from showo_data.members import BadSampleError, is_blank, read_document

# The columns or keys of OBELICS and of MMC4.
OBELICS, MMC4 = ("images", "texts"), ("text_list", "image_info")
# A text, or the image in its place: a path, or bytes.
Part = str | tuple[str | bytes]


def interleaved_items(
    patterns: Sequence[str],
    *,
    images: str | Path | None = None,
    max_images: int | None = None,
    drop_missing: bool = False,
    max_side: int | None = None,
) -> Iterator[Item]:
    """Yield documents with their images, long ones in pieces.

    Args:
        patterns: ``.parquet``, ``.jsonl`` or ``.jsonl.gz`` files, as paths, brace patterns or wildcards.
        images: the folder that paths of images are relative to; None: that of the file.
        max_images: a document is cut before an image that would be one more; None: documents stay whole.
        drop_missing: leave out images without a file, as OBELICS' own build does; else their document is.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError: a pattern matches no file, or ``images`` does not exist.
        ValueError: another kind of file, or the columns of neither layout.
    """
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"no folder {str(images)!r}")
    if max_images is not None and max_images < 1:
        raise ValueError(f"--max-images must be at least 1, not {max_images}")
    for path in find_files(patterns):
        folder = Path(images or Path(path).parent).resolve()
        load = partial(_load, folder, max_images, drop_missing, max_side)
        if path.endswith(".parquet"):
            yield from _parquet(path, load)
        elif path.endswith((".jsonl", ".jsonl.gz")):
            yield from json_lines(path, load)
        else:
            raise ValueError(f"{path}: expected .parquet, .jsonl or .jsonl.gz")


def _parquet(path: str, load: Any) -> Iterator[Item]:
    try:
        names = ParquetRows(path, ()).names
    except UnreadableFileError as error:
        yield bad_item(str(error), FILE)
        return
    columns = next((c for c in (OBELICS, MMC4) if set(c) <= set(names)), None)
    if columns is None:
        raise ValueError(
            f"{path}: it has {', '.join(map(repr, names))}; expected the columns of OBELICS, "
            f"{' and '.join(map(repr, OBELICS))}, or of MMC4, {' and '.join(map(repr, MMC4))}"
        )
    yield from ParquetFiles(columns).items([path], load)


def _load(
    folder: Path,
    max_images: int | None,
    drop_missing: bool,
    max_side: int | None,
    entry: dict[str, Any],
) -> Pieces:
    parts = (
        _matched(*map(entry.get, MMC4)) if MMC4[0] in entry else _parallel(*map(entry.get, OBELICS))
    )
    present = [p for p in parts if not drop_missing or _is_there(p, folder)]
    missing = [BadSampleError("no-image")] * (len(parts) - len(present))
    if not any(isinstance(part, tuple) for part in present):
        return missing or [BadSampleError("text-only")]
    pieces = _pieces(present, max_images or len(parts))
    return [*(_members(piece, folder, max_side) for piece in pieces), *missing]


def _parallel(images: Any, texts: Any) -> list[Part]:
    """OBELICS: lists of one length, of which one has a value at each place, and the other a null."""
    if not (isinstance(images, list) and isinstance(texts, list) and len(images) == len(texts)):
        raise BadSampleError("malformed-document")
    parts: list[Part] = []
    for image, text in zip(images, texts, strict=True):
        data = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
        if (
            (data and text)
            or not isinstance(data, str | bytes | None)
            or not isinstance(text, str | None)
        ):
            raise BadSampleError("malformed-document")
        parts += [(data,)] if data else [text] if text else []
    return parts


def _matched(sentences: Any, images: Any) -> list[Part]:
    """MMC4: each image before the sentence that it matches."""
    if not (isinstance(sentences, list) and isinstance(images, list | None)):
        raise BadSampleError("malformed-document")
    before: dict[int, list[Part]] = {}
    try:
        for image in images or ():
            number, name = image["matched_text_index"], image["image_name"]
            if (
                type(number) is not int
                or not 0 <= number < len(sentences)
                or not isinstance(name, str)
            ):
                raise BadSampleError("malformed-document")
            before.setdefault(number, []).append((name,))
    except (TypeError, KeyError):
        raise BadSampleError("malformed-document") from None
    parts: list[Part] = []
    for number, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise BadSampleError("malformed-document")
        parts += before.get(number, [])
        if parts and isinstance(parts[-1], str):
            parts[-1] += f" {sentence}"
        else:
            parts.append(sentence)
    return parts


def _pieces(parts: list[Part], most: int) -> list[list[Part]]:
    """Cut a document before every image that would be one too many; a piece without text is left out."""
    pieces: list[list[Part]] = [[]]
    for part in parts:
        if isinstance(part, tuple) and sum(isinstance(p, tuple) for p in pieces[-1]) == most:
            pieces.append([])
        pieces[-1].append(part)
    several = [p for p in pieces if not all(isinstance(x, tuple) or is_blank(x) for x in p)]
    return several or pieces[:1]


def _members(parts: list[Part], folder: Path, max_side: int | None) -> Members:
    texts = [None if isinstance(part, tuple) else part for part in parts]
    images = [_image(part[0], folder) for part in parts if isinstance(part, tuple)]
    try:
        data = json.dumps({"texts": texts}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadSampleError("not-utf8") from None
    read_document({"json": data}.get)  # the same check as in training
    return {**numbered_members(images, max_side), "json": data}


def _is_there(part: Part, folder: Path) -> bool:
    if isinstance(part, str) or isinstance(part[0], bytes):
        return True
    return "://" not in part[0] and inside_folder(folder, part[0]).is_file()


def _image(image: str | bytes, folder: Path) -> bytes:
    if isinstance(image, bytes):
        return image
    if "://" in image:
        raise BadSampleError("image-is-url")
    return read_bytes(inside_folder(folder, image))
