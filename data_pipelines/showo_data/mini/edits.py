"""Edits of the mini world: recolour, add, remove or move one object; and a checker of edited images."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data.files import claim
from showo_data.mini.checker import Detected, read_image
from showo_data.mini.drawing import draw, place
from showo_data.mini.language import phrase
from showo_data.mini.world import COLOURS, PLACES, RADII, SHAPES, Object, Scene, apart, scene
from showo_data.mini.writing import VALIDATION_FROM, parts_of, write_parts

_SETTINGS = "edits.json"
# Share of edits whose source shows one object; the others show two, of which one stays untouched.
_ALONE = 0.25
# Pixels by which the detected centre of an object may be off, along each axis.
_NEAR = 4


@dataclass(frozen=True, slots=True)
class SceneEdit:
    """One edit: the scene before and after, and the instruction."""

    kind: str
    before: Scene
    after: Scene
    instruction: str

    @classmethod
    def from_json(cls, value: dict[str, Any], instruction: str) -> "SceneEdit":
        """Make the edit that the JSON member of a sample describes."""
        before, after = (
            Scene(tuple(Object(**{**o, "centre": tuple(o["centre"])}) for o in value[name]))
            for name in ("before", "after")
        )
        return cls(value["kind"], before, after, instruction)

    def to_json(self) -> dict[str, Any]:
        """The JSON member of a sample."""
        before, after = ([asdict(o) for o in s.objects] for s in (self.before, self.after))
        return {"kind": self.kind, "before": before, "after": after}


def sample_edit(seed: int, index: int) -> SceneEdit:
    """Sample edit number ``index`` ≥ 0 of the world ``seed``; equal numbers give equal edits."""
    rng = random.Random(f"edit/{seed}/{index}")
    kind = rng.choice(tuple(_MAKERS))
    while True:
        objects = _source(rng).objects
        if made := _MAKERS[kind](rng, rng.choice(objects), objects):
            after, instruction = made
            return SceneEdit(kind, Scene(objects), Scene(after), instruction)


# The objects afterwards and the instruction; None: the edit does not fit into the scene.
_Made = tuple[tuple[Object, ...], str] | None


def _source(rng: random.Random) -> Scene:
    """Sample a scene of one object, or of two that a text can distinguish."""
    count = 1 if rng.random() < _ALONE else 2
    while True:
        drawn = scene(rng.randrange(2**32), 0)
        if len(drawn.objects) == count and not drawn.same:
            return drawn


def _recolour(rng: random.Random, thing: Object, objects: tuple[Object, ...]) -> _Made:
    colour = rng.choice([c for c in COLOURS if c != thing.colour])
    new = Object(thing.shape, colour, thing.size, thing.centre)
    others = [o for o in objects if o is not thing]
    if (new.shape, new.colour) in [(o.shape, o.colour) for o in others]:
        return None
    name = phrase(thing, article="the")
    text = rng.choice((f"make {name} {colour}", f"change the color of {name} to {colour}"))
    return tuple(new if o is thing else o for o in objects), text


def _add(rng: random.Random, _: Object, objects: tuple[Object, ...]) -> _Made:
    known = [(o.shape, o.colour) for o in objects]
    looks = [look for look in product(SHAPES, COLOURS) if look not in known]
    new = _placed(rng, *rng.choice(looks), rng.choice(tuple(RADII)), objects)
    if new is None:
        return None
    return (*objects, new), f"add {phrase(new, size=True)} {place(new.centre)}"


def _remove(rng: random.Random, thing: Object, objects: tuple[Object, ...]) -> _Made:
    name = phrase(thing, article="the")
    text = rng.choice((f"remove {name}", f"take {name} away"))
    return tuple(o for o in objects if o is not thing), text


def _move(rng: random.Random, thing: Object, objects: tuple[Object, ...]) -> _Made:
    others = tuple(o for o in objects if o is not thing)
    new = _placed(rng, thing.shape, thing.colour, thing.size, others, not_at=thing.centre)
    if new is None:
        return None
    # "move … to the top left": the name of the place without its "at" or "in".
    where = place(new.centre).partition(" ")[2]
    text = f"move {phrase(thing, article='the')} to {where}"
    return tuple(new if o is thing else o for o in objects), text


def _placed(
    rng: random.Random,
    shape: str,
    colour: str,
    size: str,
    others: tuple[Object, ...],
    not_at: tuple[int, int] | None = None,
) -> Object | None:
    """An object at a random place that is free; None without any."""
    candidates = [Object(shape, colour, size, (x, y)) for x, y in product(PLACES, PLACES)]
    free = [
        new
        for new in candidates
        if new.centre != not_at and all(apart(new, other) for other in others)
    ]
    return rng.choice(free) if free else None


_MAKERS: dict[str, Callable[[random.Random, Object, tuple[Object, ...]], _Made]] = {
    "recolour": _recolour,
    "add": _add,
    "remove": _remove,
    "move": _move,
}
EDIT_KINDS = tuple(_MAKERS)


@dataclass(frozen=True, slots=True)
class EditScore:
    """What an edited image shows.

    Attributes:
        edit: the one object is recoloured, added, removed or moved as asked, and nothing else is where it was
            or is now.
        untouched: every other object is as before, and nothing appeared elsewhere.
        reason: what is wrong; empty if both are right.
        detected: the objects of the image.
    """

    edit: bool
    untouched: bool
    reason: str
    detected: tuple[Detected, ...]


def score_edit(image: Image.Image, edit: SceneEdit) -> EditScore:
    """Compare the objects of ``image``, of any size, with the scene that ``edit`` asks for."""
    found = read_image(image)
    before, after = edit.before.objects, edit.after.objects
    kept = [thing for thing in before if thing in after]
    wanted = [thing for thing in after if thing not in before]
    places = [thing for thing in (*before, *after) if thing not in kept]
    others = [seen for seen in found if not any(_is(seen, thing) for thing in kept)]
    here = [seen for seen in others if any(_touches(seen, thing) for thing in places)]
    missing = [thing for thing in kept if not any(_is(seen, thing) for seen in found)]
    right = len(here) == len(wanted) and all(any(_is(s, t) for s in here) for t in wanted)
    untouched = not missing and len(here) == len(others)
    wrong = [name for name, ok in ((edit.kind, right), ("untouched", untouched)) if not ok]
    seen = ", ".join(f"{thing.colour} {thing.shape}" for thing in found) or "nothing"
    reason = f"{' and '.join(wrong)} wrong: the image shows {seen}" if wrong else ""
    return EditScore(right, untouched, reason, tuple(found))


def _is(seen: Detected, thing: Object) -> bool:
    """Whether a detected object is ``thing``, at its place."""
    looks = (seen.shape, seen.colour, seen.size) == (thing.shape, thing.colour, thing.size)
    return looks and _distance(seen, thing) <= _NEAR


def _touches(seen: Detected, thing: Object) -> bool:
    """Whether the centre of a detected object is in the box of ``thing``."""
    return _distance(seen, thing) <= thing.radius


def _distance(seen: Detected, thing: Object) -> float:
    return max(abs(a - b) for a, b in zip(seen.centre, thing.centre, strict=True))


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """The number of edits; equal settings give equal bytes.

    Attributes:
        edits: for training.
        validation: for evaluation, none of which is for training.
        shard_size: samples per shard.
        seed: of everything.
    """

    edits: int = 20_000
    validation: int = 400
    shard_size: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("edits", "validation", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def write_edits(
    out: str | Path, settings: EditSettings, progress: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Write train and val shards of edits with their indices to ``out``; shards that are complete are kept.

    Raises:
        ValueError: ``out`` holds edits with other settings.
    """
    folder = Path(out)
    claim(folder, _SETTINGS, asdict(settings), "edits of the mini world")
    kinds = (
        ("train", 0, settings.edits, edit_sample),
        ("val", VALIDATION_FROM, settings.validation, edit_sample),
    )
    write_parts(parts_of(folder, kinds, settings.shard_size), settings.seed, progress)


def edit_sample(seed: int, index: int) -> dict[str, Any]:
    """Return edit number ``index`` as a sample: two images, txt (instruction) and json (objects)."""
    edit = sample_edit(seed, index)
    return {
        "__key__": f"{index:010d}",
        "source.png": draw(edit.before),
        "target.png": draw(edit.after),
        "txt": edit.instruction,
        "json": edit.to_json(),
    }
