"""Detect the objects in an image of the mini world, and score an image against a prompt.

Colours are compared as directions away from the background, so a pixel at a smooth or blurred edge, a mixture
with the background, keeps its colour. Shapes are found by comparison: every shape and size is placed at every
position near the object, and the largest overlap decides.

Letters: H, W pixels of the image; C colours; L looks (shape and size); O offsets; P pixels of a look; Y, X
offsets along each axis.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from showo_data.mini.drawing import holds, stencil
from showo_data.mini.world import BACKGROUND, COLOURS, RADII, RESOLUTION, SHAPES

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

UNKNOWN = "unknown"
# A pixel belongs to an object when at least this much of it is covered. Half: the drawn outline.
_COVERED = 0.5
# Pixels; smaller patches are noise of a decoder, since the smallest object covers 200.
_SMALLEST_PATCH = 45
# Overlap (intersection over union) below which a patch has no shape. Sharp objects overlap with their own
# shape by 0.90 or more, objects blurred with a standard deviation of 1.5 pixels by 0.70 or more.
_LEAST_FIT = 0.55
# Pixels around the centre of a patch's box in which the best overlap is searched.
_REACH = 3


@dataclass(frozen=True, slots=True)
class Detected:
    """A detected object.

    ``centre`` is (x, y) in pixels of the 64×64 image; ``fit`` is the overlap (0 … 1) with the ideal shape;
    ``shape`` and ``size`` are "unknown" if no shape overlaps enough.
    """

    colour: str
    shape: str
    size: str
    centre: tuple[float, float]
    fit: float


def read_image(image: Image.Image) -> list[Detected]:
    """Detect the objects of ``image``, from left to right; it is resized to 64×64 if necessary."""
    rgb = image.convert("RGB")
    if rgb.size != (RESOLUTION, RESOLUTION):
        rgb = rgb.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC)
    coverage_HW, colour_HW = _coverage(np.asarray(rgb, dtype=np.float32))
    found = []
    for index, colour in enumerate(COLOURS):
        own_HW = np.where(colour_HW == index, coverage_HW, 0)
        for patch_HW in _patches(own_HW >= _COVERED):
            found.append(_identify(colour, patch_HW, own_HW))
    return sorted(found, key=lambda thing: thing.centre)


def _coverage(rgb_HW3: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return how much of each pixel an object covers (0 … 1), and the number of the nearest colour."""
    background_3 = np.array(BACKGROUND, dtype=np.float32)
    colours_C3 = np.array(list(COLOURS.values()), dtype=np.float32) - background_3
    lengths_C = np.linalg.norm(colours_C3, axis=1)
    along_HWC = (rgb_HW3 - background_3) @ (colours_C3 / lengths_C[:, None]).T
    nearest_HW = along_HWC.argmax(-1)
    return np.clip(along_HWC.max(-1) / lengths_C[nearest_HW], 0, 1), nearest_HW


def _patches(inside_HW: Mask) -> list[Mask]:
    """Return the 4-connected components of at least ``_SMALLEST_PATCH`` pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(inside_HW)}
    patches = []
    while left:
        members = [left.pop()]
        for y, x in members:  # members grows during this loop
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & left
            left -= near
            members.extend(near)
        if len(members) >= _SMALLEST_PATCH:
            patch_HW = np.zeros_like(inside_HW)
            patch_HW[tuple(np.transpose(members))] = True
            patches.append(patch_HW)
    return patches


def _identify(colour: str, patch_HW: Mask, own_HW: Array) -> Detected:
    """Find the shape and size of one patch by the best overlap."""
    soft_HW = np.where(_grown(patch_HW), own_HW, 0)
    ys, xs = np.nonzero(patch_HW)
    x0, y0 = (int(xs.min() + xs.max() + 1) // 2, int(ys.min() + ys.max() + 1) // 2)
    looks, ideal_LP, reach = *_ideals(), max(RADII.values())
    padded_HW = np.pad(soft_HW, reach + _REACH)
    near_HW = padded_HW[y0 : y0 + 2 * (reach + _REACH), x0 : x0 + 2 * (reach + _REACH)]
    windows_YXP = np.lib.stride_tricks.sliding_window_view(near_HW, (2 * reach, 2 * reach))
    offsets = windows_YXP.shape[0]
    shared_OL = windows_YXP.reshape(offsets * offsets, -1) @ ideal_LP.T
    union_OL = soft_HW.sum() + ideal_LP.sum(-1) - shared_OL
    fit_OL = shared_OL / union_OL
    place, look = divmod(int(fit_OL.argmax()), len(looks))
    fit = float(fit_OL[place, look])
    shape, size = looks[look] if fit >= _LEAST_FIT else (UNKNOWN, UNKNOWN)
    dy, dx = divmod(place, offsets)
    return Detected(colour, shape, size, (float(x0 + dx - _REACH), float(y0 + dy - _REACH)), fit)


def _grown(patch_HW: Mask) -> Mask:
    """Return the patch with its rim of partly covered pixels."""
    padded_HW = np.pad(patch_HW, 1)
    near = [padded_HW[y : y + RESOLUTION, x : x + RESOLUTION] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(near)


@cache
def _ideals() -> tuple[list[tuple[str, str]], Array]:
    """Return every (shape, size), and their coverages on a square for the largest, flattened: (L, P)."""
    looks = [(shape, size) for shape in SHAPES for size in RADII]
    reach = max(RADII.values())
    fields = []
    for shape, size in looks:
        mask = np.asarray(stencil(shape, RADII[size]), dtype=np.float32) / 255
        fields.append(np.pad(mask, reach - RADII[size]).ravel())
    return looks, np.stack(fields)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object of a prompt; ``position`` is (relation, index of the other wanted object)."""

    shape: str
    colour: str | None
    position: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Score:
    """Whether one image fulfils its prompt, by aspect; an aspect that the prompt does not mention is None.

    ``reason`` describes what is wrong; it is empty if the image is correct.
    """

    correct: bool
    count: bool
    shape: bool
    colour: bool | None
    position: bool | None
    reason: str
    detected: tuple[Detected, ...]


def score(image: Image.Image, metadata: dict[str, Any]) -> Score:
    """Compare the objects of ``image`` with ``metadata["include"]`` of a prompt; other keys are ignored.

    Stricter than GenEval (arXiv 2310.11513), which allows further objects: the image must show the objects
    of ``include`` and nothing else, like the captions of the mini world.
    """
    found, wanted = read_image(image), wanted_objects(metadata)
    count, shape = len(found) == len(wanted), shapes_correct(found, wanted)
    colour, position = colours_correct(found, wanted), positions_correct(found, wanted)
    correct = _matches(found, wanted, ("shape", "colour", "position"))
    aspects = {"count": count, "shape": shape, "colour": colour, "position": position}
    # Every aspect may be right and the image wrong: right colours and right shapes, wrongly combined.
    wrong = [name for name, right in aspects.items() if right is False] or ["combination"]
    seen = ", ".join(f"{thing.colour} {thing.shape}" for thing in found) or "nothing"
    reason = "" if correct else f"{' and '.join(wrong)} wrong: the image shows {seen}"
    return Score(correct, count, shape, colour, position, reason, tuple(found))


def wanted_objects(metadata: dict[str, Any]) -> list[Wanted]:
    """Return one entry per object, three for an item of count 3; positions refer to its first object."""
    items = metadata["include"]
    first = [sum(item["count"] for item in items[:i]) for i in range(len(items))]
    wanted = []
    for item in items:
        position = None
        if "position" in item:
            side, other = item["position"]
            position = (side, first[other])
        wanted += [Wanted(item["class"], item.get("color"), position)] * item["count"]
    return wanted


def shapes_correct(found: list[Detected], wanted: list[Wanted]) -> bool:
    """Whether the image has the wanted shapes and no others, regardless of colours and places."""
    return _matches(found, wanted, ("shape",))


def colours_correct(found: list[Detected], wanted: list[Wanted]) -> bool | None:
    """Whether the colours are the wanted ones, regardless of shapes; None if no colour is wanted."""
    if all(thing.colour is None for thing in wanted):
        return None
    return _matches(found, wanted, ("colour",))


def positions_correct(found: list[Detected], wanted: list[Wanted]) -> bool | None:
    """Whether the positions are the wanted ones; None if no position is wanted.

    Objects are identified by their colours alone if all colours are given and different, so that a wrong
    shape does not count twice.
    """
    if all(thing.position is None for thing in wanted):
        return None
    colours = {thing.colour for thing in wanted}
    by_colour = None not in colours and len(colours) == len(wanted)
    known = ("colour",) if by_colour else ("colour", "shape")
    return _matches(found, wanted, (*known, "position"))


def _matches(found: list[Detected], wanted: list[Wanted], aspects: tuple[str, ...]) -> bool:
    """Whether a one-to-one assignment of detected to wanted objects fulfils all ``aspects``."""
    if len(found) != len(wanted):
        return False
    return any(
        all(_fulfils(order, i, wanted[i], aspects) for i in range(len(wanted)))
        for order in permutations(found)
    )


def _fulfils(order: tuple[Detected, ...], i: int, want: Wanted, aspects: tuple[str, ...]) -> bool:
    """Whether detected object ``i`` is as wanted; ``order`` holds the detected objects, for positions."""
    thing = order[i]
    if "shape" in aspects and thing.shape != want.shape:
        return False
    if "colour" in aspects and want.colour not in (None, thing.colour):
        return False
    if "position" in aspects and want.position is not None:
        side, other = want.position
        return holds(side, thing.centre, order[other].centre)
    return True
