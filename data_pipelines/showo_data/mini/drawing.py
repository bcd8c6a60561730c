"""Draw the scenes of the mini world, draw patchworks for its tokenizer, and name the places of objects.

Centres are (x, y) in pixels, y downwards, as floats or integers.
"""

import random
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from showo_data.mini.world import BACKGROUND, CELL, COLOURS, PLACES, RESOLUTION, Scene, crowd

Point = tuple[float, float]

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# The borders along each axis: left (top) of the first, right (bottom) of the second, or between them.
_BORDERS = tuple((one + other) / 2 for one, other in pairwise(PLACES))
# A relation is named when one direction is at least this much longer than the other, in pixels.
_CLEARLY = 4.0
_SUPERSAMPLING = 3
# Half the width of a bar of the cross, as a fraction of the radius.
_BAR = 1 / 3
_CELLS = RESOLUTION // CELL
# The largest share of cells from the second crowd: some whole objects must remain visible.
_MOST_FOREIGN = 0.5


def draw(scene: Scene) -> Image.Image:
    """Draw ``scene`` as an RGB image, ``RESOLUTION`` pixels wide and high."""
    image = Image.new("RGB", (RESOLUTION, RESOLUTION), BACKGROUND)
    for thing in scene.objects:
        x, y, radius = *thing.centre, thing.radius
        image.paste(COLOURS[thing.colour], (x - radius, y - radius), stencil(thing.shape, radius))
    return image


@cache
def stencil(shape: str, radius: int) -> Image.Image:
    """Return the coverage of ``shape`` on its box: ``2 * radius`` pixels square, mode L, 255 inside."""
    side = 2 * radius * _SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    last = side - 1
    if shape == "circle":
        pen.ellipse((0, 0, last, last), fill=255)
    elif shape == "square":
        pen.rectangle((0, 0, last, last), fill=255)
    elif shape == "triangle":
        pen.polygon(((last / 2, 0), (last, last), (0, last)), fill=255)
    elif shape == "cross":
        near, far = side * (1 - _BAR) / 2, side * (1 + _BAR) / 2 - 1
        pen.rectangle((near, 0, far, last), fill=255)
        pen.rectangle((0, near, last, far), fill=255)
    else:
        raise AssertionError(f"no shape is called {shape!r}")
    return mask.resize((2 * radius, 2 * radius), Image.Resampling.BOX)


def patchwork(seed: int, index: int) -> Image.Image:
    """Draw patchwork number ``index`` of the world ``seed``: a crowd with cells of another crowd mixed in.

    An RGB image to train the tokenizer on. In the images of scenes, most cells are background and the cells
    around an object reveal what it is, so the tokenizer learns to spread the content of a cell over the codes
    of idle neighbours. In a patchwork, a cell has its own content, which its neighbours do not determine.
    """
    rng = random.Random(f"patchwork/{seed}/{index}")
    first_HW3, second_HW3 = (np.asarray(draw(crowd(seed, 2 * index + k))) for k in range(2))
    share = rng.uniform(0, _MOST_FOREIGN)
    foreign = np.array([[rng.random() < share for _ in range(_CELLS)] for _ in range(_CELLS)])
    foreign_HW1 = foreign.repeat(CELL, 0).repeat(CELL, 1)[..., None]
    return Image.fromarray(np.where(foreign_HW1, second_HW3, first_HW3))


def place(centre: Point) -> str:
    """Name one of nine places: "at the top left", "at the left", …, "in the middle"."""
    x, y = centre
    column = "left" if x < _BORDERS[0] else "right" if x > _BORDERS[1] else ""
    row = "top" if y < _BORDERS[0] else "bottom" if y > _BORDERS[1] else ""
    return f"at the {row} {column}".replace("  ", " ").strip() if row or column else "in the middle"


def relation(first: Point, second: Point) -> str | None:
    """Name the place of ``first`` relative to ``second``; None near a diagonal, where two names are right."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(abs(dx) - abs(dy)) < _CLEARLY:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def holds(side: str, first: Point, second: Point) -> bool:
    """Whether "``first`` ``side`` ``second``" is true for two centres.

    The rule of GenEval (arXiv 2310.11513): the offset along the named direction is more than half of its
    length, so near a diagonal two relations are true.
    """
    dx, dy = first[0] - second[0], first[1] - second[1]
    length = (dx * dx + dy * dy) ** 0.5
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[side]
    return length > 0 and along > 0.5 * length
