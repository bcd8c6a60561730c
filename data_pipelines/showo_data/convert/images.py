"""Convert images that are embedded in Parquet files, or that are files in a folder."""

import io
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data.convert.items import (
    Item,
    Members,
    Note,
    bad_item,
    find_files,
    is_passing,
    text_of,
)
from showo_data.convert.parquet import ParquetFiles
from showo_data.images import UnfitImageError, open_image
from showo_data.members import TEXTS, BadSampleError, is_blank, numbered, read_image
from showo_data.text import is_apple_double

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".avif"),
)
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# JPEG quality of images that are made smaller; at 95 no difference is visible at the sizes of training.
_JPEG_QUALITY = 95


def image_member(data: bytes, max_side: int | None = None) -> dict[str, bytes]:
    """Return the member of a sample for the image ``data``, as extension and bytes.

    JPEG, PNG and WebP are copied; other formats become PNG. Only the header is checked: a truncated image is
    found in training. An image with a side longer than ``max_side`` (pixels) is resized (bicubic) and stored
    as JPEG.

    Raises:
        BadSampleError: not an image, or one with too many pixels.
    """
    kind, longest = _header(data)
    if max_side is not None and longest > max_side:
        return {"jpg": _smaller(data, max_side)}
    if kind in _EXTENSIONS:
        return {_EXTENSIONS[kind]: data}
    return {"png": _encoded(read_image({"png": data}.get), "PNG")}


def numbered_members(images: Iterable[bytes], max_side: int | None = None) -> dict[str, bytes]:
    """Return the members ``0.jpg``, ``1.jpg`` … of several images; as :func:`image_member`."""
    return {
        numbered(number) + extension: member
        for number, data in enumerate(images)
        for extension, member in image_member(data, max_side).items()
    }


def read_bytes(path: Path, what: str = "image") -> bytes:
    """Read the file of an image or caption.

    Raises:
        BadSampleError: it is missing or cannot be read.
        OSError: the machine fails; ``filename`` is set.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadSampleError(f"no-{what}") from None
    except (OSError, ValueError) as error:  # ValueError: the name is none, as one with a NUL
        if is_passing(error):
            error.filename = str(path)  # an error of reading names no file
            raise
        raise BadSampleError(f"unreadable-{what}") from error


def _header(data: bytes) -> tuple[str, int]:
    """Return Pillow's name of the format, and the longer side in pixels."""
    try:
        with open_image(data) as image:
            return image.format or "", max(image.size)
    except UnfitImageError as unfit:
        raise BadSampleError(unfit.reason) from None
    except Exception as error:  # Pillow raises unrelated types on broken data
        raise BadSampleError("broken-image") from error


def _smaller(data: bytes, max_side: int) -> bytes:
    image = read_image({"jpg": data}.get)
    image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return _encoded(image, "JPEG", quality=_JPEG_QUALITY)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image_items(
    patterns: Sequence[str],
    *,
    image: str = "image",
    text: str | None = None,
    max_side: int | None = None,
) -> Iterator[Item]:
    """Yield the images of Parquet files as the Hugging Face hub serves them, and their captions if any.

    Args:
        patterns: files, as paths, brace patterns or wildcards.
        image: column of the images: bytes, or a struct whose field ``bytes`` holds them.
        text: column of the captions; None: images alone.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError: a pattern matches no file.
        ValueError: as :class:`showo_data.convert.parquet.ParquetRows`.
    """
    files = ParquetFiles([image] if text is None else [image, text])
    load = partial(_load_row, image=image, text=text, max_side=max_side)
    yield from files.items(find_files(patterns), load)


def _load_row(
    row: dict[str, Any], image: str, text: str | None, max_side: int | None
) -> list[Members]:
    value = row[image]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise BadSampleError("no-image")
    members: Members = dict(image_member(data, max_side))
    if text is not None:
        members["txt"] = text_of(row[text])
    return [members]


def folder_items(source: str | Path, *, max_side: int | None = None) -> Iterator[Item | Note]:
    """Yield all images in ``source`` and its subfolders, folder by folder in the order of their names.

    ``x.txt`` beside ``x.jpg`` is its caption, else ``x.text``, ``x.caption``, ``x.jpg.txt`` and so on: the
    first that is not blank. The extension may be in capitals. An image without a caption is converted without
    one, and counted. Links are followed; a folder that has several names is visited under the first. A folder
    that may not be read is one bad input.

    Args:
        source: the folder.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the machine fails while it lists a folder.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"no folder {str(source)!r}")
    # A link to a folder above would lead to all that is beside ``source``.
    visited, unreadable = {str(p) for p in Path(source).resolve().parents}, list[OSError]()
    for folder, subfolders, files in os.walk(source, onerror=unreadable.append, followlinks=True):
        yield from _unreadable(unreadable)
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders.sort()  # os.walk visits them in this order
        yield from _images(folder, sorted(files), max_side)
    yield from _unreadable(unreadable)


def _unreadable(errors: list[OSError]) -> Iterator[Item]:
    """Yield a bad input for each folder that os.walk could not read, and forget them."""
    while errors:
        error = errors.pop(0)
        if is_passing(error):
            raise error
        yield bad_item(str(error.filename), "unreadable-folder")


def _images(folder: str, files: list[str], max_side: int | None) -> Iterator[Item | Note]:
    """Yield the images among the files of a folder, and a note for each that is no caption either."""
    names = [name for name in files if not is_apple_double(name)]
    # Capital letters are sorted first, so that of x.TXT and x.txt the latter is kept.
    captions = {(Path(n).stem, Path(n).suffix.lower()): n for n in names}
    for name in names:
        path = Path(folder, name)
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            places = [(stem, f".{text}") for stem in (path.stem, name) for text in TEXTS]
            found = [path.with_name(captions[place]) for place in places if place in captions]
            yield Item(str(path), partial(_load_file, path, found, max_side))
        elif suffix[1:] not in TEXTS:
            yield Note("neither image nor caption", str(path))


def _load_file(path: Path, captions: Sequence[Path], max_side: int | None) -> list[Members]:
    members: Members = dict(image_member(read_bytes(path), max_side))
    for caption in captions:
        data = read_bytes(caption, "caption").removeprefix(BOM_UTF8)
        try:
            blank = is_blank(data.decode())
        except UnicodeDecodeError:
            raise BadSampleError("not-utf8") from None
        if not blank:
            members["txt"] = data
            break
    return [members]
