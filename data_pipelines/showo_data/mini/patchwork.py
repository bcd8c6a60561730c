"""Pictures to train an image tokenizer on: crowded, and with cells of another crowd mixed in.

In the mini world's own pictures most cells are background, and an object's surroundings tell what it
is: a tokenizer learns to spread over idle neighbours what a code should say by itself. Here every cell has to
speak for itself, since its neighbours have their own to say, or do not belong to it.
"""

import random

import numpy as np
from PIL import Image

from showo_data.mini.drawing import draw
from showo_data.mini.world import CELL, RESOLUTION, crowd

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
