"""Pictures into shards: the bytes as they are, unless a format is not for shards or a size was asked for."""

import io
from pathlib import Path

from PIL import Image

from showo_data.images import UnfitPictureError, open_picture
from showo_data.members import BadSampleError, read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# Quality of pictures that are made smaller; at 95 no difference is seen at the sizes of training.
_JPEG_QUALITY = 95


def picture_member(data: bytes, max_side: int | None = None) -> dict[str, bytes]:
    """The member of a sample that holds the picture ``data``: its extension and its bytes.

    JPEG, PNG and WebP are copied; other formats become PNG. The header is read, the pixels are not: a
    picture that breaks off is found in training. With ``max_side``, one with a longer side is decoded,
    made smaller (bicubic) and stored as JPEG.

    Raises:
        BadSampleError: no picture, or one of too many pixels.
    """
    kind, longest = _header(data)
    if max_side is not None and longest > max_side:
        return {"jpg": _smaller(data, max_side)}
    if kind in _EXTENSIONS:
        return {_EXTENSIONS[kind]: data}
    return {"png": _encoded(read_image({"png": data}.get), "PNG")}


def read_bytes(path: Path) -> bytes:
    """The content of a picture's file.

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
        with open_picture(data) as picture:
            return picture.format or "", max(picture.size)
    except UnfitPictureError as unfit:
        raise BadSampleError(unfit.reason) from None
    except Exception as error:  # what Pillow raises on broken data is not one family
        raise BadSampleError("broken-image") from error


def _smaller(data: bytes, max_side: int) -> bytes:
    picture = read_image({"jpg": data}.get)
    picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return _encoded(picture, "JPEG", quality=_JPEG_QUALITY)


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
