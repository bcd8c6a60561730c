"""Reads an image of the mini world back into its objects.

Colours are directions away from the background, so a pixel at a smooth or blurred edge, which is a mixture
with the background, keeps its colour. Shapes are found by rendering and comparing: every shape and size is
laid over the object at every place nearby, and the largest overlap wins.


Scores an image against a prompt of ``prompts.py``.

Stricter than GenEval (arXiv 2310.11513), which allows other objects beside those asked for: here the
image must show what ``include`` lists and nothing else, as the captions of the mini world do.
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
# Smaller patches are decoder noise: the smallest object covers 200 pixels.
_SMALLEST_PATCH = 45
# Overlap (intersection over union) below which a patch has no shape. Clean objects overlap with their own
# shape by 0.90 and more, those blurred with a deviation of 1.5 pixels by 0.70 and more.
_LEAST_FIT = 0.55
# How far, in pixels, the best overlap is searched around the middle of a patch's box.
_REACH = 3


@dataclass(frozen=True, slots=True)
class Detected:
    """An object that was read.

    ``centre`` is (x, y) in pixels of the 64×64 image; ``fit`` is the overlap of 0 … 1 with the ideal
    shape; ``shape`` and ``size`` are "unknown" where no shape overlaps enough.
    """

    colour: str
    shape: str
    size: str
    centre: tuple[float, float]
    fit: float


def read_image(image: Image.Image) -> list[Detected]:
    """The objects of ``image`` from left to right; other resolutions are resized to 64×64 first."""
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
    """How much of each pixel an object covers (0 … 1), and which colour comes nearest."""
    background_3 = np.array(BACKGROUND, dtype=np.float32)
    colours_C3 = np.array(list(COLOURS.values()), dtype=np.float32) - background_3
    lengths_C = np.linalg.norm(colours_C3, axis=1)
    along_HWC = (rgb_HW3 - background_3) @ (colours_C3 / lengths_C[:, None]).T
    nearest_HW = along_HWC.argmax(-1)
    return np.clip(along_HWC.max(-1) / lengths_C[nearest_HW], 0, 1), nearest_HW


def _patches(inside_HW: Mask) -> list[Mask]:
    """The 4-connected components of at least ``_SMALLEST_PATCH`` pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(inside_HW)}
    patches = []
    while left:
        members = [left.pop()]
        for y, x in members:  # grows while it is walked
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & left
            left -= near
            members.extend(near)
        if len(members) >= _SMALLEST_PATCH:
            patch_HW = np.zeros_like(inside_HW)
            patch_HW[tuple(np.transpose(members))] = True
            patches.append(patch_HW)
    return patches


def _identify(colour: str, patch_HW: Mask, own_HW: Array) -> Detected:
    """Name the shape and size of one patch by its best overlap."""
    soft_HW = np.where(_grown(patch_HW), own_HW, 0)
    ys, xs = np.nonzero(patch_HW)
    x0, y0 = (int(xs.min() + xs.max() + 1) // 2, int(ys.min() + ys.max() + 1) // 2)
    looks, ideal_TP, reach = *_ideals(), max(RADII.values())
    padded_HW = np.pad(soft_HW, reach + _REACH)
    near_HW = padded_HW[y0 : y0 + 2 * (reach + _REACH), x0 : x0 + 2 * (reach + _REACH)]
    windows_YXP = np.lib.stride_tricks.sliding_window_view(near_HW, (2 * reach, 2 * reach))
    offsets = windows_YXP.shape[0]
    shared_OT = windows_YXP.reshape(offsets * offsets, -1) @ ideal_TP.T
    union_OT = soft_HW.sum() + ideal_TP.sum(-1) - shared_OT
    fit_OT = shared_OT / union_OT
    place, look = divmod(int(fit_OT.argmax()), len(looks))
    fit = float(fit_OT[place, look])
    shape, size = looks[look] if fit >= _LEAST_FIT else (UNKNOWN, UNKNOWN)
    dy, dx = divmod(place, offsets)
    return Detected(colour, shape, size, (float(x0 + dx - _REACH), float(y0 + dy - _REACH)), fit)


def _grown(patch_HW: Mask) -> Mask:
    """The patch with its rim of partly covered pixels."""
    padded_HW = np.pad(patch_HW, 1)
    near = [padded_HW[y : y + RESOLUTION, x : x + RESOLUTION] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(near)


@cache
def _ideals() -> tuple[list[tuple[str, str]], Array]:
    """Every (shape, size) with its coverage, centred on a field that holds the largest, flattened."""
    looks = [(shape, size) for shape in SHAPES for size in RADII]
    reach = max(RADII.values())
    fields = []
    for shape, size in looks:
        mask = np.asarray(stencil(shape, RADII[size]), dtype=np.float32) / 255
        fields.append(np.pad(mask, reach - RADII[size]).ravel())
    return looks, np.stack(fields)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object that a prompt asks for; ``position`` is (relation, index of the other wanted object)."""

    shape: str
    colour: str | None
    position: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one image; an aspect the prompt does not speak of is None.

    ``reason`` says what is wrong in words, and is empty when the image is correct.
    """

    correct: bool
    count: bool
    shape: bool
    colour: bool | None
    position: bool | None
    reason: str
    detected: tuple[Detected, ...]


def score(image: Image.Image, metadata: dict[str, Any]) -> Score:
    """Read ``image`` and compare it with ``metadata["include"]`` (other keys are not looked at)."""
    found, wanted = read_image(image), wanted_objects(metadata)
    count, shape = len(found) == len(wanted), shapes_correct(found, wanted)
    colour, position = colours_correct(found, wanted), positions_correct(found, wanted)
    correct = _matches(found, wanted, ("shape", "colour", "position"))
    aspects = {"count": count, "shape": shape, "colour": colour, "position": position}
    # Every aspect may be right by itself: the asked colours and shapes, wrongly combined.
    wrong = [name for name, right in aspects.items() if right is False] or ["combination"]
    seen = ", ".join(f"{thing.colour} {thing.shape}" for thing in found) or "nothing"
    reason = "" if correct else f"{' and '.join(wrong)} wrong: the image shows {seen}"
    return Score(correct, count, shape, colour, position, reason, tuple(found))


def wanted_objects(metadata: dict[str, Any]) -> list[Wanted]:
    """One entry per object: an item of count 3 gives three; positions refer to an item's first object."""
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
    """Whether the image holds the wanted shapes and no others, whatever their colours and places."""
    return _matches(found, wanted, ("shape",))


def colours_correct(found: list[Detected], wanted: list[Wanted]) -> bool | None:
    """Whether the colours are the wanted ones, whatever the shapes; None if no colour was asked for."""
    if all(thing.colour is None for thing in wanted):
        return None
    return _matches(found, wanted, ("colour",))


def positions_correct(found: list[Detected], wanted: list[Wanted]) -> bool | None:
    """Whether the objects stand as asked; None if no position was asked for.

    Objects are told apart by their colours alone where these are all asked for and differ, so that a
    wrongly drawn shape does not count twice.
    """
    if all(thing.position is None for thing in wanted):
        return None
    colours = {thing.colour for thing in wanted}
    by_colour = None not in colours and len(colours) == len(wanted)
    known = ("colour",) if by_colour else ("colour", "shape")
    return _matches(found, wanted, (*known, "position"))


def _matches(found: list[Detected], wanted: list[Wanted], aspects: tuple[str, ...]) -> bool:
    """Whether some one-to-one assignment of objects to wishes satisfies every one of ``aspects``."""
    if len(found) != len(wanted):
        return False
    return any(
        all(_fulfils(order, i, wanted[i], aspects) for i in range(len(wanted)))
        for order in permutations(found)
    )


def _fulfils(order: tuple[Detected, ...], i: int, wish: Wanted, aspects: tuple[str, ...]) -> bool:
    thing = order[i]
    if "shape" in aspects and thing.shape != wish.shape:
        return False
    if "colour" in aspects and wish.colour not in (None, thing.colour):
        return False
    if "position" in aspects and wish.position is not None:
        side, other = wish.position
        return holds(side, thing.centre, order[other].centre)
    return True
