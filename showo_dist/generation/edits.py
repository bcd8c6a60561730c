"""Extrapolation: a code grid grows by parts that are generated window by window.

Images and masks as they come, to what the encoders take."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from showo_data import vq_transform
from showo_data.images import decode

Direction = Literal["left", "right", "up", "down"]

# (codes (B, side, side) with places to generate) -> the same, generated
FillWindow = Callable[[Tensor], Tensor]


def check_direction(direction: str) -> Direction:
    """The direction itself.

    Raises:
        ValueError: it is none.
    """
    for known in get_args(Direction):
        if direction == known:
            return known
    raise ValueError(f"direction {direction!r}: expected {', '.join(get_args(Direction))}")


def growth(side: int, offset: int) -> int:
    """Rows or columns of codes that one step adds: half an image and ``offset``.

    Raises:
        ValueError: nothing would be added, or nothing of the image would be seen.
    """
    grown = side // 2 + offset
    if not 0 < grown < side:
        raise ValueError(
            f"inference.offset = {offset}: expected {1 - side // 2} to {side - 1 - side // 2}, "
            f"for an image has {side} code columns"
        )
    return grown


def _turned(grid: Tensor, direction: Direction) -> Tensor:
    """The grid with its growing edge on the right; the same call turns it back."""
    if direction in ("left", "right"):
        return grid.flip(-1) if direction == "left" else grid
    # The anti-transpose brings the upper edge to the right, and is its own inverse.
    return grid.transpose(-1, -2) if direction == "down" else grid.flip(-1, -2).transpose(-1, -2)


def _starts(length: int, side: int) -> Iterator[int]:
    """Windows of ``side`` that cover ``length``, each overlapping the last by half or more."""
    step = max(1, side // 2)
    start = 0
    while start + side < length:
        yield start
        start += step
    yield length - side


def extended(
    codes_Bhw: Tensor,
    direction: Direction,
    side: int,
    grown: int,
    blank: int,
    fill_window: FillWindow,
) -> Tensor:
    """The grid grown by one step; what was there keeps its codes.

    A grid that is wider than one image across the direction is generated in overlapping windows, each seeing
    what the ones before generated.

    Args:
        codes_Bhw: int64, h and w at least ``side``.
        direction: in which it grows.
        side: codes along one side of what the model generates at once.
        grown: rows or columns to add.
        blank: the code of a place to generate.
        fill_window: generates a window in the image's own orientation.
    """
    grid = _turned(codes_Bhw, direction)
    new = grid.new_full((*grid.shape[:2], grown), blank)
    grid = torch.cat([grid, new], dim=-1)
    for start in _starts(grid.shape[1], side):
        window = grid[:, start : start + side, -side:]
        generated = fill_window(_turned(window, direction).contiguous())
        grid[:, start : start + side, -side:] = _turned(generated, direction)
    return _turned(grid, direction).contiguous()


_PROPORTION_SLACK = 0.01  # of the quotient of the sides; sizes are whole pixels


def read_image(path: str | Path) -> Image.Image:
    """The RGB image of a file, turned as its EXIF orientation says.

    Raises:
        ValueError: there is no such file, or no image in it; it is named.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return decode(data)
    except Exception as error:  # Pillow's formats do not share an exception
        reason = str(error).partition(" <_io")[0]
        raise ValueError(f"{path}: not an image that can be read ({reason})") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB image; what it was stays as it is."""
    return ImageOps.exif_transpose(image).convert("RGB")


def pixels(images: list[Image.Image], resolution: int) -> Tensor:
    """Images of any size to (B, 3, side, side) in [-1, 1], resized and cropped as in training."""
    transform = vq_transform(resolution)
    return torch.stack([transform(as_rgb(image)) for image in images])


def masked_places(mask: Image.Image, image: Image.Image, resolution: int, side: int) -> Tensor:
    """The codes that a mask covers, bool (side, side); white is drawn anew.

    The mask takes the image's way through resizing and cropping, is then resized to the code grid
    (bicubic), and counts from 0.5 on (docs/specification.md, section 9).

    Raises:
        ValueError: its proportions are not the image's, or it covers no code.
    """
    mask, image = as_rgb(as_rgb(mask).convert("L")), as_rgb(image)
    if abs(mask.width * image.height / (mask.height * image.width) - 1) > _PROPORTION_SLACK:
        raise ValueError(
            f"mask of {mask.width}×{mask.height} pixels for an image of "
            f"{image.width}×{image.height}: expected the same proportions"
        )
    if mask.size != image.size:
        mask = mask.resize(image.size, Image.Resampling.BICUBIC)
    whiteness_HW = (vq_transform(resolution)(mask)[0] + 1) / 2
    small = F.interpolate(whiteness_HW[None, None], (side, side), mode="bicubic")
    places = small[0, 0] >= 0.5
    if not places.any():
        raise ValueError("the mask covers no code of the image: white marks what is drawn anew")
    return places
