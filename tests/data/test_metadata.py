"""Metadata that cannot be read or written back cost an image its orientation at most."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from showo_data.convert.images import image_member
from showo_data.images import decode, upright
from showo_dist.generation.edits import as_rgb, read_image


def _encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _gradient(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def _png_with(*chunks: tuple[bytes, bytes], after: bool = False, crc: int = 0) -> bytes:
    """A wide PNG with these chunks before or after its pixels; ``crc`` spoils their checksums."""
    whole = _encoded(_gradient(20, 30))
    extra = b"".join(
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data) ^ crc)
        for name, data in chunks
    )
    place = len(whole) - 12 if after else whole.index(b"IDAT") - 4
    return whole[:place] + extra + whole[place:]


def _jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    whole = _encoded(_gradient(20, 30), "JPEG")
    extra = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments
    )
    return whole[:2] + extra + whole[2:]


def _exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with entries (tag, type, count, value or offset)."""
    body = b"".join(struct.pack("<HHI", tag, kind, n) + value for tag, kind, n, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + b"\xff" * 16


_TURN = (0x0112, 3, 1, b"\x06\0\0\0")
_BOMB = b"Comment\0\0" + zlib.compress(bytes(2**21))
METADATA = {
    "PNG, EXIF that is none": _png_with((b"eXIf", b"\0\x08\0\x02\x01\x12")),
    "PNG, EXIF of one byte": _png_with((b"eXIf", b"I")),
    "PNG, EXIF behind its end": _png_with((b"eXIf", b"II*\0\xff\xff\xff\xff")),
    "PNG, raw profile without numbers": _png_with(
        (b"tEXt", b"Raw profile type exif\0\nexif\n 8\nno numbers\n")
    ),
    "PNG, XMP": _png_with((b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="9"\xff')),
    "PNG, a text that is a bomb": _png_with((b"zTXt", _BOMB)),
    "PNG, a text that is a bomb, at the end": _png_with((b"zTXt", _BOMB), after=True),
    "PNG, an international bomb": _png_with(
        (b"iTXt", b"c\0\1\0\0\0" + zlib.compress(bytes(2**21)))
    ),
    "PNG, a profile that is a bomb": _png_with((b"iCCP", _BOMB)),
    "PNG, texts of too many bytes": _png_with(*[(b"tEXt", b"c\0" + b"x" * 2**20)] * 65),
    "PNG, texts with wrong checksums": _png_with((b"tEXt", b"c\0text"), crc=1),
    "PNG, short gamma, scale and tone": _png_with((b"gAMA", b"1"), (b"cHRM", b"2"), (b"sRGB", b"")),
    "JPEG, EXIF that is none": _jpeg_with((0xE1, b"Exif\0\0nonsense")),
    "JPEG, EXIF that is empty": _jpeg_with((0xE1, b"Exif\0\0")),
    "JPEG, EXIF that loops": _jpeg_with((0xE1, b"Exif\0\0" + _exif((0x8769, 4, 1, b"\x08\0\0\0")))),
    "JPEG, empty MPF index": _jpeg_with((0xE2, b"MPF\0II*\0\xff\xff\xff\xff")),
    "JPEG, Photoshop": _jpeg_with((0xED, b"Photoshop 3.0\08BIM\x03\xed\xff\xff\xff\xff")),
    "JPEG, a profile of no parts": _jpeg_with((0xE2, b"ICC_PROFILE\0\x01\x00")),
    "JPEG, XMP": _jpeg_with((0xE1, b"http://ns.adobe.com/xap/1.0/\0tiff:Orientation>\xff")),
    "WebP, EXIF that is none": _encoded(_gradient(20, 30), "WEBP", exif=b"nonsense"),
    "TIFF, odd tags": _encoded(_gradient(20, 30), "TIFF", tiffinfo={700: b"\xff", 34665: 2**31}),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_cannot_be_read_cost_the_orientation_only(name: str, tmp_path: Path) -> None:
    """In decoding, in the conversions, which read the header, and in the commands that take image files."""
    data = METADATA[name]
    image = decode(data)
    assert (image.mode, image.size) == ("RGB", (20, 30))
    if not name.startswith(("JPEG", "WebP")):
        assert image.tobytes() == _gradient(20, 30).tobytes()
    assert image_member(data) and image_member(data, max_side=10)["jpg"]
    (tmp_path / "file").write_bytes(data)
    assert as_rgb(read_image(tmp_path / "file")).size == (20, 30)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_orientation_among_tags_that_cannot_be_written_back(form: str) -> None:
    """A whole number below zero where only others are allowed: Pillow reads it and fails to write it."""
    negative = (0x829A, 10, 1, struct.pack("<I", 8 + 2 + 24 + 4))
    exif = _exif(_TURN, negative)[:-16] + struct.pack("<ii", -1, 3)
    data = _encoded(_gradient(20, 30), form, exif=b"Exif\0\0" + exif)
    image = decode(data)
    assert image.size == (30, 20)
    assert upright(image).size == (30, 20), "turned once only"


@pytest.mark.parametrize(
    "data", [_encoded(_gradient(20, 30))[:-40], b"", b"\xff\xd8\xff", b"\x89PNG"]
)
def test_broken_pixels_are_not_saved_by_dropping_metadata(data: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017 - Pillow's formats do not share an exception
        decode(data)
