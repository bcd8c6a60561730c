"""Write the prompts of the comparison: GenEval's six categories and long prompts, rare combinations apart.

A combination is common if every shape has its typical colour in the skewed world, and rare otherwise. The tag
of rare prompts ends in ``RARE``.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from showo_data.files import written_aside
from showo_data.mini import prompts, scene
from showo_data.mini.drawing import place
from showo_data.mini.language import WORDINGS, describe
from showo_data.mini.world import TYPICAL, Scene

RARE = ", rare"
LONG = "long"
# Prompts of each tag: 300 in all.
COUNTS = {
    "single_object": 24,
    "two_object": 24,
    "counting": 24,
    "colors": 16,
    f"colors{RARE}": 32,
    "position": 24,
    f"position{RARE}": 36,
    "color_attr": 24,
    f"color_attr{RARE}": 36,
    LONG: 24,
    f"{LONG}{RARE}": 36,
}
# Scenes of long prompts have numbers that no image of the data sets has.
_FIRST = 2 * 10**9
_LONG = replace(WORDINGS["complete"], located=1.0)

Prompt = dict[str, Any]


def write(path: Path, seed: int) -> None:
    """Write ``COUNTS`` prompts as JSON lines."""
    pools: dict[str, list[Prompt]] = {tag: [] for tag in COUNTS}
    for prompt in _drawn(seed):
        pool = pools[_tag(prompt)]
        if prompt not in pool:
            pool.append(prompt)
    lines = [
        json.dumps({**pools[tag][i % len(pools[tag])], "tag": tag})
        for tag, count in COUNTS.items()
        for i in range(count)
    ]
    with written_aside(path) as stream:
        stream.write("\n".join([*lines, ""]).encode())


def _drawn(seed: int) -> Iterator[Prompt]:
    """More prompts of each category than are needed, so that enough of them are common."""
    yield from prompts(seed, 600)
    for index in range(4 * sum(COUNTS.values())):
        drawn = scene(seed, _FIRST + index, skew=0.5)
        if len(drawn.objects) == 2 and not drawn.same:
            yield _long(drawn)


def _long(drawn: Scene) -> Prompt:
    include = [
        {"class": t.shape, "count": 1, "color": t.colour, "size": t.size, "place": place(t.centre)}
        for t in drawn.objects
    ]
    return {"tag": LONG, "include": include, "prompt": describe(drawn, random.Random(0), _LONG)}


def _tag(prompt: Prompt) -> str:
    colours = [(entry.get("color"), TYPICAL[entry["class"]][0]) for entry in prompt["include"]]
    rare = any(colour not in (None, typical) for colour, typical in colours)
    return prompt["tag"] + (RARE if rare else "")


def main(argv: list[str]) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser("mini_paper.py prompts", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    write(options.out, options.seed)
