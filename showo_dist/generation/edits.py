"""Input images as tensors, masks as code grids, and extrapolation of a code grid."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from showo_data import vq_transform
from showo_data.images import decode, upright

Direction = Literal["left", "right", "up", "down"]

# (codes (B, side, side) with places to generate) -> the same with all places generated
FillWindow = Callable[[Tensor], Tensor]

_PROPORTION_SLACK = 0.01  # relative difference of aspect ratios; sizes are whole pixels


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, turned as its EXIF orientation says.

    Raises:
        ValueError: the file is missing or holds no readable image; the message names it.
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
    """Return an upright RGB copy of an image."""
    return upright(image).convert("RGB")


def pixels(images: list[Image.Image], resolution: int) -> Tensor:
    """Resize and crop images as in training; returns (B, 3, resolution, resolution) in [-1, 1]."""
    transform = vq_transform(resolution)
    return torch.stack([transform(as_rgb(image)) for image in images])


def masked_places(mask: Image.Image, image: Image.Image, resolution: int, side: int) -> Tensor:
    """Return the codes that a mask covers in white, bool (side, side).

    The mask is resized and cropped like the image, then resized to the code grid (bicubic). A code is
    covered from 0.5 on (docs/specification.md, section 9).

    Raises:
        ValueError: the mask's proportions are not the image's, or it covers no code.
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
        raise ValueError("the mask covers no code of the image: white marks what is regenerated")
    return places


def check_direction(direction: str) -> Direction:
    """Return the direction.

    Raises:
        ValueError: it is not one of left, right, up, down.
    """
    for known in get_args(Direction):
        if direction == known:
            return known
    raise ValueError(f"direction {direction!r}: expected {', '.join(get_args(Direction))}")


def growth(side: int, offset: int) -> int:
    """Return how many rows or columns of codes one extrapolation step adds: half an image and ``offset``.

    Raises:
        ValueError: the step would add nothing, or leave no code of the image in the model's window.
    """
    grown = side // 2 + offset
    if not 0 < grown < side:
        raise ValueError(
            f"inference.offset = {offset}: expected {1 - side // 2} to {side - 1 - side // 2}, "
            f"because an image has {side} code columns"
        )
    return grown


def extend_grid(
    codes_Bhw: Tensor,
    direction: Direction,
    side: int,
    grown: int,
    blank: int,
    fill_window: FillWindow,
) -> Tensor:
    """Extend a code grid by one step; the given codes do not change.

    A grid that is wider than one image across the direction is generated in overlapping windows. Each window
    includes codes that earlier windows generated.

    Args:
        codes_Bhw: int64 codes, h and w at least ``side``.
        direction: the edge that grows.
        side: rows and columns of codes that the model generates at once.
        grown: rows or columns to add.
        blank: the code that marks a place to generate.
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


def _turned(grid: Tensor, direction: Direction) -> Tensor:
    """Turn the grid so that its growing edge is on the right; a second call turns it back."""
    if direction in ("left", "right"):
        return grid.flip(-1) if direction == "left" else grid
    # The anti-transpose brings the upper edge to the right, and is its own inverse.
    return grid.transpose(-1, -2) if direction == "down" else grid.flip(-1, -2).transpose(-1, -2)


def _starts(length: int, side: int) -> Iterator[int]:
    """Yield the starts of windows that cover ``length`` and overlap by half or more."""
    step = max(1, side // 2)
    start = 0
    while start + side < length:
        yield start
        start += step
    yield length - side
