"""Where things are: the nine places of an image, and the relation of two centres.

Centres are (x, y) in pixels, y downwards, as floats or integers.


Draws a scene with smooth edges.

Images to train an image tokenizer on: crowded, and with cells of another crowd mixed in.

In the mini world's own images most cells are background, and an object's surroundings tell what it
is: a tokenizer learns to spread over idle neighbours what a code should say by itself. Here every cell has to
speak for itself, since its neighbours have their own to say, or do not belong to it.
"""

import random
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from showo_data.mini.world import BACKGROUND, CELL, COLOURS, PLACES, RESOLUTION, Scene, crowd

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


_SUPERSAMPLING = 3
# Half the width of a bar of the cross, as a fraction of the radius.
_BAR = 1 / 3


def draw(scene: Scene) -> Image.Image:
    """The RGB image of ``scene``, ``RESOLUTION`` pixels wide and high."""
    image = Image.new("RGB", (RESOLUTION, RESOLUTION), BACKGROUND)
    for thing in scene.objects:
        x, y, radius = *thing.centre, thing.radius
        image.paste(COLOURS[thing.colour], (x - radius, y - radius), stencil(thing.shape, radius))
    return image


@cache
def stencil(shape: str, radius: int) -> Image.Image:
    """The coverage of ``shape`` on its own box: ``2·radius`` pixels square, mode L, 255 inside."""
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


_CELLS = RESOLUTION // CELL
# Of the cells up to this share comes from the second crowd: whole objects must remain to be seen.
_MOST_FOREIGN = 0.5


def patchwork(seed: int, index: int) -> Image.Image:
    """The patchwork number ``index`` of the world ``seed``, RGB: always the same one."""
    rng = random.Random(f"patchwork/{seed}/{index}")
    first_HW3, second_HW3 = (np.asarray(draw(crowd(seed, 2 * index + k))) for k in range(2))
    share = rng.uniform(0, _MOST_FOREIGN)
    foreign = np.array([[rng.random() < share for _ in range(_CELLS)] for _ in range(_CELLS)])
    foreign_HW1 = foreign.repeat(CELL, 0).repeat(CELL, 1)[..., None]
    return Image.fromarray(np.where(foreign_HW1, second_HW3, first_HW3))
