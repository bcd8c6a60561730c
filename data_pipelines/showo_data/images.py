"""From bytes of an image to a tensor, with Pillow alone."""

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

# Channel means and deviations of CLIP's training images (its preprocessor_config.json).
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class UnfitImageError(ValueError):
    """An image of a size that cannot be used; ``reason`` is a short code."""

    reason = "unfit-image"


class TooLargeError(UnfitImageError):
    """An image has, or would be resized to, more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``."""

    reason = "image-too-large"


class TooSmallError(UnfitImageError):
    """An image of a single pixel: what web pages count visitors with."""

    reason = "image-too-small"


def open_image(data: bytes) -> Image.Image:
    """The image in ``data`` with its header read and its pixels not.

    Raises:
        TooLargeError: the header announces too many pixels.
        TooSmallError: the header announces a single pixel.
        Exception: whatever Pillow raises on broken data (its formats do not share an exception).
    """
    with warnings.catch_warnings():  # Pillow raises only at twice its limit, and warns before
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooLargeError(str(error)) from None
    if image.size == (1, 1):
        raise TooSmallError("1x1 pixels")
    return image


def decode(data: bytes) -> Image.Image:
    """The RGB image in ``data``, turned as its EXIF orientation says; of an animation, the first frame.

    Raises:
        Exception: as :func:`open_image`, before any pixel is decoded or for broken pixels.
    """
    image = _eight_bits(open_image(data))
    ImageOps.exif_transpose(image, in_place=True)
    image.load()  # broken pixels are found here, and not in a transform
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image scaled to 8 bits; Pillow's own conversion would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    grey_HW = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
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
            # Halves of odd margins go to the even number, as torchvision's CenterCrop rounds them.
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
    """RGB image → float32 (3, resolution, resolution) in [-1, 1], for the image tokenizer.

    ``short`` resizes the shorter side (bicubic) and crops the middle; ``squash`` resizes both sides and so
    changes the proportions, as the published reconstruction data does. The result pickles.
    """
    if resize not in ("short", "squash"):
        raise ValueError(f"resize must be 'short' or 'squash', not {resize!r}")
    return VQTransform(resolution, resize)


def clip_transform(size: int = 336) -> Transform:
    """RGB image → float32 (3, size, size), normalised as CLIP's image processor does.

    The result pickles.
    """
    return CLIPTransform(size)


def _short_side(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to ``side`` pixels (bicubic), the longer one in proportion, rounded down."""
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    # A line of 1 × 20,000 pixels would grow to billions.
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise TooLargeError(f"{width}x{height} pixels after resizing")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    return image.crop((left, top, left + side, top + side))


def _unit(image: Image.Image) -> Tensor:
    """8-bit RGB → float32 (3, height, width) in [0, 1]."""
    pixels_HW3 = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels_HW3.permute(2, 0, 1).contiguous().float().div_(255)
