"""Text-to-image prompts in GenEval's six categories (arXiv 2310.11513), about the mini world's objects.

A prompt is a line of JSON with the keys ``tag``, ``include`` and ``prompt``. ``include`` lists the objects
that the image must show, each ``{"class": shape, "count": n}`` and, if the prompt mentions them, ``"color"``
and ``"position": [relation, index of the other entry]``.
"""

import random
from typing import Any

from showo_data.mini.drawing import OPPOSITE
from showo_data.mini.language import NUMBERS, plural
from showo_data.mini.world import COLOURS, SHAPES

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
Prompt = dict[str, Any]


def prompts(seed: int, per_tag: int) -> list[Prompt]:
    """Sample ``per_tag`` prompts of each category, all different unless the category has fewer."""
    return [prompt for tag in TAGS for prompt in _distinct(tag, seed, per_tag)]


def _distinct(tag: str, seed: int, count: int) -> list[Prompt]:
    rng = random.Random(f"prompts/{seed}/{tag}")
    pool: dict[str, Prompt] = {}
    for _ in range(50 * count):  # small categories have fewer prompts than wanted
        prompt = _WRITERS[tag](rng)
        pool.setdefault(prompt["prompt"], {"tag": tag, **prompt})
        if len(pool) == count:
            break
    unlike = list(pool.values())
    return [unlike[i % len(unlike)] for i in range(count)]


def _entry(shape: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": shape, "count": count, **more}


def _single_object(rng: random.Random) -> Prompt:
    shape = rng.choice(SHAPES)
    return {"include": [_entry(shape)], "prompt": f"a {shape}"}


def _two_object(rng: random.Random) -> Prompt:
    one, other = rng.sample(SHAPES, 2)
    return {"include": [_entry(one), _entry(other)], "prompt": f"a {one} and a {other}"}


def _counting(rng: random.Random) -> Prompt:
    shape, count = rng.choice(SHAPES), rng.randint(2, 4)
    return {"include": [_entry(shape, count)], "prompt": f"{NUMBERS[count]} {plural(shape)}"}


def _colors(rng: random.Random) -> Prompt:
    shape, colour = rng.choice(SHAPES), rng.choice(tuple(COLOURS))
    return {"include": [_entry(shape, color=colour)], "prompt": f"a {colour} {shape}"}


def _pair(rng: random.Random) -> tuple[list[dict[str, Any]], list[str]]:
    shapes, colours = rng.sample(SHAPES, 2), rng.sample(tuple(COLOURS), 2)
    looks = list(zip(shapes, colours, strict=True))
    return [_entry(s, color=c) for s, c in looks], [f"a {c} {s}" for s, c in looks]


def _position(rng: random.Random) -> Prompt:
    include, names = _pair(rng)
    side = rng.choice(tuple(OPPOSITE))
    include[0]["position"] = [side, 1]
    return {"include": include, "prompt": f" {side} ".join(names)}


def _color_attr(rng: random.Random) -> Prompt:
    include, names = _pair(rng)
    return {"include": include, "prompt": " and ".join(names)}


_WRITERS = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
