"""Decoding and resizing: every kind of image, bounded size, and the numbers of the reference processors."""

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from transformers.models.clip import CLIPImageProcessorPil

from showo_data.convert.images import image_member
from showo_data.images import (
    NoRangeError,
    TooLargeError,
    TooSmallError,
    clip_transform,
    decode,
    open_image,
    vq_transform,
)
from showo_data.members import BadSampleError


def _encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :, None]
    y = np.linspace(255, 0, height)[:, None, None]
    pixels = np.concatenate(np.broadcast_arrays(x, y, (x + y) / 2), axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", [(100, 64), (64, 101), (333, 500), (20, 20)])
def test_clip_numbers_equal_the_reference_processor(size: tuple[int, int]) -> None:
    image = _gradient(*size)
    side = 56
    reference = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    expected_3HW = torch.as_tensor(reference(image)["pixel_values"][0])
    torch.testing.assert_close(clip_transform(side)(image), expected_3HW, atol=1e-6, rtol=0)


def test_short_side_is_resized_and_the_middle_kept() -> None:
    image_3HW = vq_transform(32)(_gradient(96, 32))
    assert image_3HW.shape == (3, 32, 32) and image_3HW.dtype == torch.float32
    assert image_3HW.min() >= -1 and image_3HW.max() <= 1
    across_W = image_3HW[0].mean(0)
    assert across_W[0] == pytest.approx(-1 / 3, abs=0.03)
    assert across_W[-1] == pytest.approx(1 / 3, abs=0.03)


def test_squash_keeps_the_borders() -> None:
    across_W = vq_transform(32, "squash")(_gradient(96, 32))[0].mean(0)
    assert across_W[0] < -0.95 and across_W[-1] > 0.95


def test_a_image_of_the_right_size_passes_unchanged() -> None:
    image = _gradient(32, 32)
    restored = ((vq_transform(32)(image) + 1) * 127.5).round().byte().permute(1, 2, 0)
    assert np.array_equal(restored.numpy(), np.asarray(image))


def test_transforms_travel_to_other_processes() -> None:
    image = _gradient(40, 50)
    for transform in (vq_transform(16), vq_transform(16, "squash"), clip_transform(28)):
        assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


def test_an_unknown_way_to_resize_is_refused() -> None:
    with pytest.raises(ValueError, match="'short' or 'squash', not 'long'"):
        vq_transform(32, "long")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_formats(form: str) -> None:
    image = decode(_encoded(_gradient(20, 30), form))
    assert (image.mode, image.size) == ("RGB", (20, 30))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes(mode: str) -> None:
    image = decode(_encoded(Image.new("RGB", (9, 7), "white").convert(mode)))
    assert (image.mode, image.size, image.getpixel((3, 3))) == ("RGB", (9, 7), (255,) * 3)


def test_cmyk() -> None:
    image = decode(_encoded(Image.new("CMYK", (9, 7), (0, 0, 0, 0)), "JPEG"))
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey_HW = np.full((7, 9), 0x8000, dtype=np.uint16)
    assert decode(_encoded(Image.fromarray(grey_HW))).getpixel((3, 3)) == (128, 128, 128)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((2, 2)) == (255, 0, 0)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    assert decode(_encoded(_gradient(20, 30), "JPEG", exif=exif)).size == (30, 20)


def test_a_single_pixel_is_no_image() -> None:
    with pytest.raises(TooSmallError):
        decode(_encoded(_gradient(1, 1)))


@pytest.mark.parametrize("size", [(1, 2), (1, 300), (7, 2000)])
def test_extreme_images_become_squares(size: tuple[int, int]) -> None:
    assert vq_transform(32)(decode(_encoded(_gradient(*size)))).shape == (3, 32, 32)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _encoded(Image.new("L", (100, 100)))
    for limit in (9_999, 1_000):  # Pillow itself only warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(TooLargeError):
            decode(data)


def test_a_line_does_not_grow_without_bound() -> None:
    with pytest.raises(TooLargeError):
        vq_transform(512)(Image.new("RGB", (20_000, 1)))


def test_postscript_runs_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript on it."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("it ran"))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(data)).format == "EPS"
    with pytest.raises(UnidentifiedImageError):
        decode(data)


@pytest.mark.parametrize("form", ["GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "MPO"])
def test_other_formats(form: str) -> None:
    options = {"save_all": True, "append_images": [_gradient(20, 30)]} if form == "MPO" else {}
    image = open_image(_encoded(_gradient(20, 30), form, **options))
    assert (image.format, image.size) == (form, (20, 30))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_no_defined_range_are_refused(dtype: type) -> None:
    """They would become black, or white."""
    data = _encoded(Image.fromarray(np.ones((7, 9), dtype)), "TIFF")
    with pytest.raises(NoRangeError):
        decode(data)
    with pytest.raises(BadSampleError, match="image-without-range"):
        image_member(data)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_any_format(form: str) -> None:
    data = _encoded(Image.fromarray(np.full((7, 9), 0x8000, dtype=np.uint16)), form)
    assert decode(data).getpixel((3, 3)) == (128, 128, 128)


def _grey_tiff(rows_HB: np.ndarray, width: int, bits: int, white_is_zero: bool | None) -> bytes:
    """An uncompressed TIFF of one strip, which Pillow cannot write: its rows are whole bytes (H, B)."""
    tags = {  # number: type (3 = 16 bits, 4 = 32 bits), value
        256: (3, width),
        257: (3, len(rows_HB)),
        258: (3, bits),
        259: (3, 1),  # not compressed
        262: (3, 0 if white_is_zero else 1),  # left out for None
        273: (4, 8),  # where the pixels begin
        277: (3, 1),  # samples per pixel
        278: (3, len(rows_HB)),
        279: (4, rows_HB.size),
    }
    pixels = rows_HB.astype(np.uint8).tobytes()
    entries = [
        struct.pack("<HHI", tag, kind, 1) + value.to_bytes(4, "little")
        for tag, (kind, value) in tags.items()
        if tag != 262 or white_is_zero is not None
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory


@pytest.mark.parametrize(
    ("bits", "row", "white_is_zero", "expected"),
    [
        (12, [0x80, 0x0F, 0xFF], False, [128, 255]),  # 0x800 and 0xfff, packed
        (16, [0x00, 0x80, 0xFF, 0xFF], False, [128, 255]),
        (16, [0x00, 0x80, 0x00, 0x00], True, [127, 255]),
        (16, [0x00, 0x80, 0xFF, 0xFF], None, [128, 255]),
        (8, [0x80, 0x00], True, [127, 255]),
    ],
)
def test_grey_tiff(
    bits: int, row: list[int], white_is_zero: bool | None, expected: list[int]
) -> None:
    """Of 12 bits the largest number is white as well, and 0 is white where the file says so."""
    rows_HB = np.tile(np.array(row), (2, 1))
    image = decode(_grey_tiff(rows_HB, 2, bits, white_is_zero))
    assert [image.getpixel((x, 1)) for x in (0, 1)] == [(grey,) * 3 for grey in expected]
