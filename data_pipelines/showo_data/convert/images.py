"""Images into shards: the bytes as they are, unless a format is not for shards or a size was asked for.

Images embedded in Parquet files, as the Hugging Face hub serves them.

One's own images: a folder, with a text file beside each image where there are captions."""

import io
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from showo_data.convert.items import Item, Members, find_files, text_of
from showo_data.convert.parquet import ParquetFiles
from showo_data.images import UnfitImageError, open_image
from showo_data.members import TEXTS, BadSampleError, read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# Quality of images that are made smaller; at 95 no difference is seen at the sizes of training.
_JPEG_QUALITY = 95


def image_member(data: bytes, max_side: int | None = None) -> dict[str, bytes]:
    """The member of a sample that holds the image ``data``: its extension and its bytes.

    JPEG, PNG and WebP are copied; other formats become PNG. The header is read, the pixels are not: a
    image that breaks off is found in training. With ``max_side``, one with a longer side is decoded,
    made smaller (bicubic) and stored as JPEG.

    Raises:
        BadSampleError: no image, or one of too many pixels.
    """
    kind, longest = _header(data)
    if max_side is not None and longest > max_side:
        return {"jpg": _smaller(data, max_side)}
    if kind in _EXTENSIONS:
        return {_EXTENSIONS[kind]: data}
    return {"png": _encoded(read_image({"png": data}.get), "PNG")}


def read_bytes(path: Path) -> bytes:
    """The content of an image's file.

    Raises:
        BadSampleError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadSampleError("no-image") from None
    except OSError as error:
        raise BadSampleError("unreadable-image") from error


def _header(data: bytes) -> tuple[str, int]:
    """Pillow's name of the format, and the longer side in pixels."""
    try:
        with open_image(data) as image:
            return image.format or "", max(image.size)
    except UnfitImageError as unfit:
        raise BadSampleError(unfit.reason) from None
    except Exception as error:  # what Pillow raises on broken data is not one family
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
    """Images and perhaps their captions.

    Args:
        patterns: files, as paths, brace patterns or wildcards.
        image: column of the images: bytes, or a struct whose field ``bytes`` holds them.
        text: column of the captions; None: images alone.
        max_side: see :func:`showo_data.convert.images.image_member`.

    Raises:
        FileNotFoundError, ValueError: as :class:`showo_data.convert.parquet.ParquetRows`.
    """
    files = ParquetFiles([image] if text is None else [image, text])
    for path, number in files.places(find_files(patterns)):
        load = partial(_load_row, files, path, number, image, text, max_side)
        yield Item(f"{path}, row {number}", load)


def _load_row(
    files: ParquetFiles, path: str, number: int, image: str, text: str | None, max_side: int | None
) -> list[Members]:
    row = files.row(path, number)
    value = row[image]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise BadSampleError("no-image")
    members: Members = dict(image_member(data, max_side))
    if text is not None:
        members["txt"] = text_of(row[text])
    return [members]


def folder_items(source: str | Path, *, max_side: int | None = None) -> Iterator[Item]:
    """All images below ``source``, folder by folder in the order of their names.

    ``x.txt`` (or ``x.text``, ``x.caption``) beside ``x.jpg`` is its caption.

    Args:
        source: the folder.
        max_side: see :func:`showo_data.convert.images.image_member`.

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
                yield Item(str(path), partial(_load_file, path, max_side))


def _load_file(path: Path, max_side: int | None) -> list[Members]:
    members: Members = dict(image_member(read_bytes(path), max_side))
    for extension in TEXTS:
        text = path.with_suffix(f".{extension}")
        if text.is_file():
            members["txt"] = text.read_bytes()
            break
    return [members]
