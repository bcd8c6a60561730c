"""Scores a picture against a prompt of ``prompts.py``.

Stricter than GenEval (arXiv 2310.11513), which allows other objects beside those asked for: here the
picture must show what ``include`` lists and nothing else, as the captions of the mini world do.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

from PIL import Image

from showo_data.mini.geometry import holds
from showo_data.mini.reading import Detected, read_picture


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object that a prompt asks for; ``position`` is (relation, index of the other wanted object)."""

    shape: str
    colour: str | None
    position: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one picture; an aspect the prompt does not speak of is None.

    ``reason`` says what is wrong in words, and is empty when the picture is correct.
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
    found, wanted = read_picture(image), wanted_objects(metadata)
    count, shape = len(found) == len(wanted), shapes_correct(found, wanted)
    colour, position = colours_correct(found, wanted), positions_correct(found, wanted)
    correct = _matches(found, wanted, ("shape", "colour", "position"))
    aspects = {"count": count, "shape": shape, "colour": colour, "position": position}
    # Every aspect may be right by itself: the asked colours and shapes, wrongly combined.
    wrong = [name for name, right in aspects.items() if right is False] or ["combination"]
    seen = ", ".join(f"{thing.colour} {thing.shape}" for thing in found) or "nothing"
    reason = "" if correct else f"{' and '.join(wrong)} wrong: the picture shows {seen}"
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
    """Whether the picture holds the wanted shapes and no others, whatever their colours and places."""
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
