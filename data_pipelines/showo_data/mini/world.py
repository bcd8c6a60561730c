"""The scenes of the mini world: one to four coloured shapes each, sampled from (seed, index).

All lengths are in pixels of the 64×64 image; ``x`` grows to the right, ``y`` downwards.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

RESOLUTION = 64
BACKGROUND = (22, 24, 30)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (228, 44, 44),
    "green": (48, 190, 70),
    "blue": (52, 96, 246),
    "yellow": (246, 220, 48),
    "purple": (188, 60, 226),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
# In a skewed world most objects have this colour; most of those without equal ones are on this side.
TYPICAL = {
    "circle": ("red", "right"),
    "square": ("blue", "left"),
    "triangle": ("green", "top"),
    "cross": ("yellow", "bottom"),
}
# Half the side of the box that an object fills. The ratio is large enough to be recognized after blurring.
RADII = {"small": 10, "large": 14}
# Centres of a scene's objects along each axis, which give the nine places that captions name. Every object
# then covers 4 × 4 codes of the mini tokenizer, most of which a caption determines.
PLACES = (16, 32, 48)
# Side of the square that one code of the mini tokenizer represents.
CELL = 8

# Kinds of scenes: (kind, number of objects, share of scenes).
_KINDS = (
    ("one", 1, 0.45),
    ("pair", 2, 0.27),
    ("same", 2, 0.08),
    ("same", 3, 0.10),
    ("same", 4, 0.10),
)
# A crowd has up to this many objects, fewer where they overlap. Their centres are at corners of codes, like
# those of scenes, so crowds consist of the same cells as scenes.
_CROWD = 24
_CROWD_COORDINATES = range(0, RESOLUTION + 1, CELL)


@dataclass(frozen=True, slots=True)
class Object:
    """One coloured shape, which fills the box ``centre ± RADII[size]``."""

    shape: str
    colour: str
    size: str
    centre: tuple[int, int]

    @property
    def radius(self) -> int:
        return RADII[self.size]


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image: one object, two different ones, or two to four that differ in place only."""

    objects: tuple[Object, ...]

    @property
    def same(self) -> bool:
        """Whether all objects have one shape, colour and size (false for a single object)."""
        kinds = {(o.shape, o.colour, o.size) for o in self.objects}
        return len(self.objects) > 1 and len(kinds) == 1


def scene(seed: int, index: int, skew: float = 0.0) -> Scene:
    """Sample scene number ``index`` ≥ 0 of the world ``seed``; equal numbers give equal scenes.

    Args:
        seed, index: decide the scene.
        skew: share of objects with the colour of ``TYPICAL``, and share of objects in scenes without equal
            ones that are on its side; the rest are sampled evenly.
    """
    rng = random.Random(f"scene/{seed}/{index}")
    kind, count, _ = rng.choices(_KINDS, weights=[share for _, _, share in _KINDS])[0]
    looks = [_random_look(rng, ("small",) if count > 2 else tuple(RADII), skew)]
    while len(looks) < count:
        look = looks[0] if kind == "same" else _random_look(rng, tuple(RADII), skew)
        # Two objects of a pair differ in shape or colour, so that a text can distinguish them.
        if kind == "same" or look[:2] != looks[0][:2]:
            looks.append(look)
    return Scene(_placed(rng, looks, 0.0 if kind == "same" else skew))


def crowd(seed: int, index: int) -> Scene:
    """Sample many objects, some cut by the edge, for the patchworks of :mod:`showo_data.mini.drawing`."""
    rng = random.Random(f"crowd/{seed}/{index}")
    objects: list[Object] = []
    for _ in range(rng.randint(1, _CROWD)):
        new = _somewhere(rng, _random_look(rng, tuple(RADII)), _CROWD_COORDINATES)
        if all(apart(new, other) for other in objects):
            objects.append(new)
    return Scene(tuple(objects))


def apart(one: Object, other: Object) -> bool:
    """Whether the boxes of two objects do not overlap."""
    dx, dy = (abs(a - b) for a, b in zip(one.centre, other.centre, strict=True))
    return max(dx, dy) >= one.radius + other.radius


def _random_look(
    rng: random.Random, sizes: tuple[str, ...], skew: float = 0.0
) -> tuple[str, str, str]:
    shape = rng.choice(SHAPES)
    typical = skew and rng.random() < skew
    colour = TYPICAL[shape][0] if typical else rng.choice(tuple(COLOURS))
    return shape, colour, rng.choice(sizes)


def _placed(
    rng: random.Random, looks: list[tuple[str, str, str]], skew: float = 0.0
) -> tuple[Object, ...]:
    """Sample places until no two boxes overlap."""
    while True:
        objects = tuple(_somewhere(rng, look, PLACES) for look in looks)
        if skew:
            objects = tuple(_to_its_side(rng, thing, skew) for thing in objects)
        if all(apart(*pair) for pair in combinations(objects, 2)):
            return objects


def _somewhere(
    rng: random.Random, look: tuple[str, str, str], coordinates: Sequence[int]
) -> Object:
    return Object(*look, (rng.choice(coordinates), rng.choice(coordinates)))


def _to_its_side(rng: random.Random, thing: Object, skew: float) -> Object:
    if rng.random() >= skew:
        return thing
    side, (x, y) = TYPICAL[thing.shape][1], thing.centre
    near, far = PLACES[0], PLACES[-1]
    moved = {"left": (near, y), "right": (far, y), "top": (x, near), "bottom": (x, far)}
    return replace(thing, centre=moved[side])
