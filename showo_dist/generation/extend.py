"""Extrapolation: a code grid grows by parts that are painted window by window."""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

Direction = Literal["left", "right", "up", "down"]

# (codes (B, side, side) with places to paint) -> the same, painted
PaintWindow = Callable[[Tensor], Tensor]


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
    """Rows or columns of codes that one step adds: half a picture and ``offset``.

    Raises:
        ValueError: nothing would be added, or nothing of the picture would be seen.
    """
    grown = side // 2 + offset
    if not 0 < grown < side:
        raise ValueError(
            f"inference.offset = {offset}: expected {1 - side // 2} to {side - 1 - side // 2}, "
            f"for a picture has {side} code columns"
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
    paint_window: PaintWindow,
) -> Tensor:
    """The grid grown by one step; what was there keeps its codes.

    A grid that is wider than one picture across the direction is painted in overlapping windows, each seeing
    what the ones before painted.

    Args:
        codes_Bhw: int64, h and w at least ``side``.
        direction: in which it grows.
        side: codes along one side of what the model paints at once.
        grown: rows or columns to add.
        blank: the code of a place to paint.
        paint_window: paints a window in the picture's own orientation.
    """
    grid = _turned(codes_Bhw, direction)
    new = grid.new_full((*grid.shape[:2], grown), blank)
    grid = torch.cat([grid, new], dim=-1)
    for start in _starts(grid.shape[1], side):
        window = grid[:, start : start + side, -side:]
        painted = paint_window(_turned(window, direction).contiguous())
        grid[:, start : start + side, -side:] = _turned(painted, direction)
    return _turned(grid, direction).contiguous()
