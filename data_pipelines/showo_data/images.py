"""Decode and transform images with Pillow: from bytes to tensors, and back to images."""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor

Transform = Callable[[Image.Image], Tensor]

# Channel means and deviations of CLIP's training images (its preprocessor_config.json).
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# EXIF orientation → the transposition that makes the image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Keys of ``Image.info`` that hold an orientation.
_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# Pillow reads more, some of it by running other programs: Ghostscript for bytes that begin with "%!PS".
# "JPEG" includes MPO. AVIF is last, since Pillow before 11.3 lacks it.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF")


class UnfitImageError(ValueError):
    """The size or the pixels of the image cannot be used; ``reason`` is a short code."""

    reason = "unfit-image"


class TooLargeError(UnfitImageError):
    """The image has, or would be resized to, more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``."""

    reason = "image-too-large"


class TooSmallError(UnfitImageError):
    """The image is a single pixel, as tracking images of web pages are."""

    reason = "image-too-small"


class NoRangeError(UnfitImageError):
    """The pixels are floats or 32-bit integers, and no format defines which of them is white."""

    reason = "image-without-range"


def open_image(data: bytes) -> Image.Image:
    """Open the image in ``data``: its header is read, its pixels are not.

    Metadata that cannot be read are left out.

    Raises:
        TooLargeError: by its header, the image has too many pixels.
        TooSmallError: by its header, the image is a single pixel.
        NoRangeError: by its header, the pixels are floats or 32-bit integers.
        Exception: whatever Pillow raises on broken data (its formats do not share an exception).
    """
    return _despite_metadata(_opened, data)


def decode(data: bytes) -> Image.Image:
    """Decode the RGB image in ``data``, turned by its EXIF orientation; of an animation, the first frame.

    Metadata that cannot be read (EXIF, XMP, profiles, texts) cost the orientation, not the image.

    Raises:
        Exception: as :func:`open_image`, before any pixel is decoded; or for broken pixels.
    """
    return _despite_metadata(_decoded, data)


def upright(image: Image.Image) -> Image.Image:
    """Turn the image by its EXIF orientation, if that can be read; the result has no orientation."""
    image.load()  # so that broken pixels raise here, not in a transform
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata may hold anything, and Pillow raises unrelated types
        turn = None
    if turn is None:
        return image
    # Not ImageOps.exif_transpose, which writes the other metadata back and fails where it cannot.
    turned = image.transpose(turn)
    for key in _ORIENTED:
        turned.info.pop(key, None)
    return turned


def _despite_metadata(read: Callable[[bytes], Image.Image], data: bytes) -> Image.Image:
    """Read an image; if that fails, read it once more without the metadata of its file."""
    try:
        return read(data)
    except UnfitImageError:
        raise
    except Exception:
        bare = _without_metadata(data)
        if bare is None:
            raise
        return read(bare)


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():  # Pillow raises at twice its limit only, and warns below that
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooLargeError(str(error)) from None
    if image.size == (1, 1):
        raise TooSmallError("1x1 pixels")
    # "I" of other formats than TIFF has 16 bits.
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise NoRangeError(f"{image.format} of mode {image.mode}")
    return image


def _decoded(data: bytes) -> Image.Image:
    image = upright(_eight_bits(_opened(data)))
    return image if image.mode == "RGB" else image.convert("RGB")


def _without_metadata(data: bytes) -> bytes | None:
    """Return the file of an image without its metadata; None if it has none, or is of another format."""
    parts = _png_parts if data.startswith(_PNG) else _jpeg_parts
    try:
        bare = b"".join(parts(data))
    except (struct.error, IndexError):  # the file ends early
        return None
    return bare if 0 < len(bare) < len(data) else None


_PNG = b"\x89PNG\r\n\x1a\n"


def _png_parts(data: bytes) -> Iterator[bytes]:
    """Yield the signature and the chunks that decide the pixels of the first frame."""
    yield _PNG
    start = len(_PNG)
    while start < len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + length + 12  # length, name and checksum
        # An ancillary chunk has a lower-case first letter; of those, only transparency decides pixels.
        if name[:1].isupper() or name == b"tRNS":
            yield data[start:end]
        start = end


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """Yield all segments but those of applications and comments; nothing if it is no JPEG."""
    if not data.startswith(b"\xff\xd8"):
        return
    yield data[:2]
    start = 2
    while data[start + 1] != 0xDA:  # start of scan: the rest is pixels
        if data[start] != 0xFF:
            raise IndexError(start)
        marker, length = struct.unpack_from(">xBH", data, start)
        end = start + 2 + length
        # JFIF (E0) and Adobe (EE) decide the colours.
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield data[start:end]
        start = end
    yield data[start:]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale a 12- or 16-bit grey image to 8 bits; Pillow's own conversion would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    bits = 16
    if isinstance(image, TiffImageFile):  # of other formats, Pillow scales what has fewer bits
        (bits,) = image.tag_v2[BITSPERSAMPLE]
    grey_HW = np.clip(np.asarray(image, dtype=np.int64) >> bits - 8, 0, 255).astype(np.uint8)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        grey_HW = 255 - grey_HW  # 0 is white; Pillow inverts 8 bits alone
    scaled = Image.fromarray(grey_HW)
    scaled.info = image.info
    return scaled


@dataclass(frozen=True, slots=True)
class VQTransform:
    """See :func:`vq_transform`."""

    resolution: int
    resize: Literal["short", "squash"]

    def __call__(self, image: Image.Image) -> Tensor:
        if self.resize == "short":
            resized = _short_side(image, self.resolution)
            # round() rounds halves to the even number, as torchvision's CenterCrop does.
            left, top = (round((length - self.resolution) / 2) for length in resized.size)
            square = _crop(resized, left, top, self.resolution)
        else:
            side = (self.resolution, self.resolution)
            square = image.resize(side, Image.Resampling.BICUBIC)
        return _unit(square).mul_(2).sub_(1)


@dataclass(frozen=True, slots=True)
class CLIPTransform:
    """See :func:`clip_transform`."""

    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        resized = _short_side(image, self.size)
        left, top = ((length - self.size) // 2 for length in resized.size)
        image_3HW = _unit(_crop(resized, left, top, self.size))
        mean_311 = torch.tensor(_CLIP_MEAN).view(3, 1, 1)
        return image_3HW.sub_(mean_311).div_(torch.tensor(_CLIP_STD).view(3, 1, 1))


def vq_transform(resolution: int, resize: Literal["short", "squash"] = "short") -> Transform:
    """Return the transform for the image tokenizer: RGB image → fp32 (3, resolution, resolution) in [-1, 1].

    ``short`` resizes the shorter side (bicubic) and crops the centre; ``squash`` resizes both sides and so
    changes the proportions, as the published reconstruction data does. The transform can be pickled.

    Raises:
        ValueError: another ``resize``.
    """
    if resize not in ("short", "squash"):
        raise ValueError(f"resize must be 'short' or 'squash', not {resize!r}")
    return VQTransform(resolution, resize)


def clip_transform(size: int = 336) -> Transform:
    """Return CLIP's image preprocessing: RGB image → fp32 (3, size, size), normalised.

    The transform can be pickled.
    """
    return CLIPTransform(size)


def _short_side(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to ``side`` pixels (bicubic), the longer one in proportion, rounded down."""
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    # An image of 1 × 20,000 pixels would grow to billions.
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise TooLargeError(f"{width}x{height} pixels after resizing")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    return image.crop((left, top, left + side, top + side))


def _unit(image: Image.Image) -> Tensor:
    """Convert 8-bit RGB to fp32 (3, H, W) in [0, 1]."""
    pixels_HW3 = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels_HW3.permute(2, 0, 1).contiguous().float().div_(255)


def to_images(pixels_B3HW: Tensor) -> list[Image.Image]:
    """Pixels in [-1, 1], clipped, → 8-bit RGB images: the inverse of :func:`vq_transform`."""
    bytes_BHW3 = ((pixels_B3HW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(image) for image in bytes_BHW3.cpu().numpy()]
