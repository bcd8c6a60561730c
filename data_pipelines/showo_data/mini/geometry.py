"""Where things are: the nine places of a picture, and the relation of two centres.

Centres are (x, y) in pixels, y downwards, as floats or integers.
"""

from itertools import pairwise

from showo_data.mini.world import PLACES

Point = tuple[float, float]

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Along each axis: left (top) of the first border, right (bottom) of the second, or between them.
_BORDERS = tuple((one + other) / 2 for one, other in pairwise(PLACES))
# A relation is named when one direction is at least this much longer than the other, in pixels.
_CLEARLY = 4.0


def place(centre: Point) -> str:
    """One of nine: "at the top left", "at the left", …, "in the middle"."""
    x, y = centre
    column = "left" if x < _BORDERS[0] else "right" if x > _BORDERS[1] else ""
    row = "top" if y < _BORDERS[0] else "bottom" if y > _BORDERS[1] else ""
    return f"at the {row} {column}".replace("  ", " ").strip() if row or column else "in the middle"


def relation(first: Point, second: Point) -> str | None:
    """Where ``first`` lies as seen from ``second``; None on a diagonal, where two words would do."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(abs(dx) - abs(dy)) < _CLEARLY:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def holds(side: str, first: Point, second: Point) -> bool:
    """Whether "``first`` ``side`` ``second``" is true of two centres.

    As GenEval judges it: the offset's share along the named direction is more than one half of its
    length, so that on a diagonal both words hold.
    """
    dx, dy = first[0] - second[0], first[1] - second[1]
    length = (dx * dx + dy * dy) ** 0.5
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[side]
    return length > 0 and along > 0.5 * length
