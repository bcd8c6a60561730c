"""Texts about scenes: captions, questions with answers, and plain text, all in lower case."""

import random
from dataclasses import dataclass

from showo_data.mini.drawing import OPPOSITE, place, relation
from showo_data.mini.world import COLOURS, SHAPES, Object, Scene, scene

NUMBERS = ("no", "one", "two", "three", "four")
_PLURALS = {"cross": "crosses"}


@dataclass(frozen=True, slots=True)
class Wording:
    """How much captions tell.

    Attributes:
        colourless: share of captions that omit the colours, where shapes distinguish the objects.
        sized: share that name the sizes.
        placed: share that name the place of a single object or the relation of two.
        located: share of the captions of two objects with ``placed`` that name both places instead of the
            relation.
    """

    colourless: float
    sized: float
    placed: float
    located: float = 0.0


MIXED = Wording(0.15, 0.3, 0.4)
WORDINGS = {
    "mixed": MIXED,
    # As on the web, most attributes are left out; here chance alone decides which.
    "sparse": Wording(0.7, 0.1, 0.2),
    "complete": Wording(0.0, 1.0, 1.0, 0.5),
}


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return _PLURALS.get(shape, f"{shape}s")


def phrase(thing: Object, *, colour: bool = True, size: bool = False, article: str = "a") -> str:
    """Return a noun phrase such as "a red circle", "the circle" or "a small red circle"."""
    words = [article, thing.size if size else "", thing.colour if colour else "", thing.shape]
    return " ".join(word for word in words if word)


def caption(scene: Scene, rng: random.Random, wording: Wording = MIXED) -> str:
    """Sample one of the true captions of ``scene`` that mention all of its objects."""
    there = "there are " if scene.same else "there is "
    return rng.choice(("", "", "", "a picture of ", there)) + describe(scene, rng, wording)


def describe(scene: Scene, rng: random.Random, wording: Wording = MIXED) -> str:
    """Sample a caption without opening: "three yellow squares", "a red circle left of a green cross"."""
    if scene.same:
        return _describe_group(scene, rng, wording)
    size = rng.random() < wording.sized
    # Without colours two objects of one shape would be "a circle and a circle".
    distinct = len({thing.shape for thing in scene.objects}) == len(scene.objects)
    colour = not (distinct and rng.random() < wording.colourless)
    things = list(scene.objects)
    rng.shuffle(things)
    names = [phrase(thing, colour=colour, size=size) for thing in things]
    placed = rng.random() < wording.placed
    located = [f"{name} {place(t.centre)}" for name, t in zip(names, things, strict=True)]
    if len(things) == 1:
        return located[0] if placed else names[0]
    side = relation(things[0].centre, things[1].centre)
    if placed and wording.located and (not side or rng.random() < wording.located):
        return " and ".join(located)
    return (f" {side} " if placed and side else " and ").join(names)


def _describe_group(scene: Scene, rng: random.Random, wording: Wording) -> str:
    thing = scene.objects[0]
    words = [NUMBERS[len(scene.objects)]]
    words += [thing.size] if rng.random() < wording.sized else []
    words += [thing.colour] if rng.random() >= wording.colourless else []
    return " ".join([*words, plural(thing.shape)])


def questions(scene: Scene, rng: random.Random, wording: Wording = MIXED) -> list[tuple[str, str]]:
    """Return all questions that have one true answer for ``scene``, with the answers, in random order.

    One more asks for a description; ``wording`` is that of its answer.
    """
    pairs = [
        ("what is shown?", caption(scene, rng, wording)),
        ("how many objects are there?", NUMBERS[len(scene.objects)]),
        _is_there(scene, rng),
    ]
    if scene.same:
        thing = scene.objects[0]
        pairs += [
            (f"how many {plural(thing.shape)} are there?", NUMBERS[len(scene.objects)]),
            (f"what color are the {plural(thing.shape)}?", thing.colour),
            ("what shape are the objects?", plural(thing.shape)),
        ]
    for thing in () if scene.same else scene.objects:
        pairs += _about_one(thing, [other for other in scene.objects if other is not thing])
    rng.shuffle(pairs)
    return pairs


def _is_there(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Ask whether an object is there; half of the answers are yes."""
    present = {(thing.colour, thing.shape) for thing in scene.objects}
    absent = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    absent = [look for look in absent if look not in present]
    yes = rng.random() < 0.5
    colour, shape = rng.choice(sorted(present) if yes else absent)
    return f"is there a {colour} {shape}?", "yes" if yes else "no"


def _about_one(thing: Object, others: list[Object]) -> list[tuple[str, str]]:
    """Ask for colour, shape, size and place of an object, in a scene without two equal objects."""
    name = phrase(thing, article="the")
    pairs = [(f"is {name} small or large?", thing.size)]
    if thing.shape not in [other.shape for other in others]:
        pairs.append((f"what color is the {thing.shape}?", thing.colour))
    if thing.colour not in [other.colour for other in others]:
        pairs.append((f"what shape is the {thing.colour} object?", thing.shape))
    if not others:
        return [*pairs, (f"where is {name}?", place(thing.centre))]
    for other in others:
        if side := relation(thing.centre, other.centre):
            rest = phrase(other, article="the")
            pairs.append((f"where is {name}?", f"{side} {rest}"))
            pairs.append((f"what is {side} {rest}?", name))
    return pairs


def plain_text(rng: random.Random) -> str:
    """Sample one to three sentences about the mini world, without an image."""
    return " ".join(rng.choice(_WRITERS)(rng) for _ in range(rng.randint(1, 3)))


def _write_scene(rng: random.Random) -> str:
    imagined = scene(rng.randrange(2**32), 0)
    return f"{'there are' if imagined.same else 'there is'} {describe(imagined, rng)}."


def _write_answer(rng: random.Random) -> str:
    imagined = scene(rng.randrange(2**32), 0)
    question, answer = rng.choice(questions(imagined, rng))
    return f"the picture shows {describe(imagined, rng)}. {question} {answer}."


def _write_converse(rng: random.Random) -> str:
    first, second = (f"{rng.choice(tuple(COLOURS))} {shape}" for shape in rng.sample(SHAPES, 2))
    side = rng.choice(tuple(OPPOSITE))
    return f"if the {first} is {side} the {second}, the {second} is {OPPOSITE[side]} the {first}."


def _write_sum(rng: random.Random) -> str:
    left = rng.randint(1, 3)
    right = rng.randint(1, 4 - left)
    parts = [
        f"{NUMBERS[count]} {shape if count == 1 else plural(shape)}"
        for count, shape in zip((left, right), rng.sample(SHAPES, 2), strict=True)
    ]
    return f"{parts[0]} and {parts[1]} are {NUMBERS[left + right]} objects."


_FACTS = (
    "a circle is round and has no corners.",
    "a square has four equal sides.",
    "a triangle has three corners.",
    "a cross has four arms.",
    "a large shape covers more of the picture than a small shape.",
)


def _write_fact(rng: random.Random) -> str:
    return rng.choice(_FACTS)


_WRITERS = (_write_scene, _write_answer, _write_converse, _write_sum, _write_fact)
