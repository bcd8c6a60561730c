"""Draws a scene with smooth edges."""

from functools import cache

from PIL import Image, ImageDraw

from showo_data.mini.world import BACKGROUND, COLOURS, RESOLUTION, Scene

_SUPERSAMPLING = 3
# Half the width of a bar of the cross, as a fraction of the radius.
_BAR = 1 / 3


def draw(scene: Scene) -> Image.Image:
    """The RGB picture of ``scene``, ``RESOLUTION`` pixels wide and high."""
    picture = Image.new("RGB", (RESOLUTION, RESOLUTION), BACKGROUND)
    for thing in scene.objects:
        x, y, radius = *thing.centre, thing.radius
        picture.paste(COLOURS[thing.colour], (x - radius, y - radius), stencil(thing.shape, radius))
    return picture


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
