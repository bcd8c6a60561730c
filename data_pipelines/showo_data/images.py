"""From bytes of a picture to a tensor, with Pillow alone."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Transform = Callable[[Image.Image], Tensor]

# Channel means and deviations of CLIP's training pictures (its preprocessor_config.json).
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class UnfitPictureError(ValueError):
    """A picture of a size that cannot be used; ``reason`` is a short code."""

    reason = "unfit-image"


class TooLargeError(UnfitPictureError):
    """A picture has, or would be resized to, more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``."""

    reason = "image-too-large"


class TooSmallError(UnfitPictureError):
    """A picture of a single pixel: what web pages count visitors with."""

    reason = "image-too-small"


def open_picture(data: bytes) -> Image.Image:
    """The picture in ``data`` with its header read and its pixels not.

    Raises:
        TooLargeError: the header announces too many pixels.
        TooSmallError: the header announces a single pixel.
        Exception: whatever Pillow raises on broken data (its formats do not share an exception).
    """
    with warnings.catch_warnings():  # Pillow raises only at twice its limit, and warns before
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(data))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooLargeError(str(error)) from None
    if picture.size == (1, 1):
        raise TooSmallError("1x1 pixels")
    return picture


def decode(data: bytes) -> Image.Image:
    """The RGB picture in ``data``, turned as its EXIF orientation says; of an animation, the first frame.

    Raises:
        Exception: as :func:`open_picture`, before any pixel is decoded or for broken pixels.
    """
    picture = _eight_bits(open_picture(data))
    ImageOps.exif_transpose(picture, in_place=True)
    picture.load()  # broken pixels are found here, and not in a transform
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A 16-bit grey picture scaled to 8 bits; Pillow's own conversion would clip it to white."""
    if not picture.mode.startswith("I"):
        return picture
    grey_HW = np.clip(np.asarray(picture, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
    scaled = Image.fromarray(grey_HW)
    scaled.info = picture.info
    return scaled


@dataclass(frozen=True, slots=True)
class VQTransform:
    """See :func:`vq_transform`."""

    resolution: int
    resize: Literal["short", "squash"]

    def __call__(self, picture: Image.Image) -> Tensor:
        if self.resize == "short":
            resized = _short_side(picture, self.resolution)
            # Halves of odd margins go to the even number, as torchvision's CenterCrop rounds them.
            left, top = (round((length - self.resolution) / 2) for length in resized.size)
            square = _crop(resized, left, top, self.resolution)
        else:
            side = (self.resolution, self.resolution)
            square = picture.resize(side, Image.Resampling.BICUBIC)
        return _unit(square).mul_(2).sub_(1)


@dataclass(frozen=True, slots=True)
class CLIPTransform:
    """See :func:`clip_transform`."""

    size: int

    def __call__(self, picture: Image.Image) -> Tensor:
        resized = _short_side(picture, self.size)
        left, top = ((length - self.size) // 2 for length in resized.size)
        image_3HW = _unit(_crop(resized, left, top, self.size))
        mean_311 = torch.tensor(_CLIP_MEAN).view(3, 1, 1)
        return image_3HW.sub_(mean_311).div_(torch.tensor(_CLIP_STD).view(3, 1, 1))


def vq_transform(resolution: int, resize: Literal["short", "squash"] = "short") -> Transform:
    """RGB picture → float32 (3, resolution, resolution) in [-1, 1], for the image tokenizer.

    ``short`` resizes the shorter side (bicubic) and crops the middle; ``squash`` resizes both sides and so
    changes the proportions, as the published reconstruction data does. The result pickles.
    """
    if resize not in ("short", "squash"):
        raise ValueError(f"resize must be 'short' or 'squash', not {resize!r}")
    return VQTransform(resolution, resize)


def clip_transform(size: int = 336) -> Transform:
    """RGB picture → float32 (3, size, size), normalised as CLIP's image processor does.

    The result pickles.
    """
    return CLIPTransform(size)


def _short_side(picture: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to ``side`` pixels (bicubic), the longer one in proportion, rounded down."""
    short = min(picture.size)
    width, height = (int(side * length / short) for length in picture.size)
    # A line of 1 × 20,000 pixels would grow to billions.
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise TooLargeError(f"{width}x{height} pixels after resizing")
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _crop(picture: Image.Image, left: int, top: int, side: int) -> Image.Image:
    return picture.crop((left, top, left + side, top + side))


def _unit(picture: Image.Image) -> Tensor:
    """8-bit RGB → float32 (3, height, width) in [0, 1]."""
    pixels_HW3 = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels_HW3.permute(2, 0, 1).contiguous().float().div_(255)
