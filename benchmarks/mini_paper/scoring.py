"""Write the result of one run as JSON, from its evaluation and from images that it reconstructs.

Beside the scores of ``showo-dist evaluate --framework mini``:

* long prompts in DPG-Bench's manner (arXiv 2403.05135): the share of statements that hold. Colour, size and
  place only count where there is an object of the shape;
* diversity: the mean difference of the pixels of two images of one prompt, between black (0) and white (1);
* typical colour: how many single objects of which no colour was asked have their shape's typical one;
* reconstruction of held-out images, from the model's own condition: the share of objects of the right shape,
  colour, size and place, and the mean difference of the pixels.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image

from mini_paper.prompts import LONG, RARE
from showo_data.mini import TAGS, Detected, read_image
from showo_data.mini.drawing import place
from showo_data.mini.world import TYPICAL
from showo_dist.evaluation.job import write_json
from showo_dist.evaluation.mini import read_prompts
from showo_dist.evaluation.mini_scores import read_questions
from showo_dist.evaluation.spread import one_thread
from showo_dist.generation.pipeline import Pipeline

Json = dict[str, Any]
# The only category whose prompts leave an object's colour and place open and are asked several times.
OPEN = "single_object"


def statements(found: Sequence[Detected], include: Sequence[Json]) -> list[bool]:
    """Which statements of a long prompt hold, under the assignment of objects for which most do.

    Args:
        found: objects in the image.
        include: wanted ones, each with class, color, size and place.
    """
    absent = [None] * len(include)
    orders = permutations([*found, *absent], len(include))
    held = [
        [s for pair in zip(order, include, strict=True) for s in _of(*pair)] for order in orders
    ]
    return max(held, key=sum)


def _of(thing: Detected | None, want: Json) -> list[bool]:
    if thing is None or thing.shape != want["class"]:
        return [False] * 4
    right = (
        thing.colour == want["color"],
        thing.size == want["size"],
        place(thing.centre) == want["place"],
    )
    return [True, *right]


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two images of one size, 0 to 1."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float32) for image in (one, other))
    return float(np.abs(a - b).mean() / 255)


def diversity(images: Sequence[tuple[str, Image.Image]]) -> float | None:
    """Mean difference of all pairs of images of one prompt, averaged over the prompts with several.

    None if no prompt has several.
    """
    groups = defaultdict(list)
    for prompt, image in images:
        groups[prompt].append(image)
    pairs = [combinations(group, 2) for group in groups.values() if len(group) > 1]
    means = [mean(difference(*pair) for pair in of_prompt) for of_prompt in pairs]
    return mean(means) if means else None


def looks(image: Image.Image) -> Counter[tuple[str, ...]]:
    """Shape, colour, size and place of the objects in an image."""
    return Counter((t.shape, t.colour, t.size, place(t.centre)) for t in read_image(image))


def image_values(folder: Path, prompts: Sequence[Json]) -> Json:
    """Scores of long prompts, diversity and typical colours, from the images of an evaluation."""
    long: dict[str, list[float]] = defaultdict(list)
    opened, typical = [], []
    for index, prompt in enumerate(prompts):
        with Image.open(folder / f"images/{index:05d}.png") as file:
            image = file.convert("RGB")
        if prompt["tag"].startswith(LONG):
            long[prompt["tag"]].append(mean(statements(read_image(image), prompt["include"])))
        if prompt["tag"] == OPEN:
            opened.append((prompt["prompt"], image))
            typical += [
                t.colour == TYPICAL[t.shape][0] for t in read_image(image) if t.shape in TYPICAL
            ]
    values: Json = {tag: mean(scores) for tag, scores in long.items()}
    values["diversity"] = diversity(opened)
    values["typical colour"] = mean(typical) if typical else None
    return values


def category_values(scores: Json) -> Json:
    """Accuracies of an evaluation, and means over categories: all six, and common and rare alone."""
    counts = {tag: entry for tag, entry in scores["categories"].items() if not tag.startswith(LONG)}
    values = {tag: entry["accuracy"] for tag, entry in counts.items()}
    both = {tag: [counts[t] for t in (tag, f"{tag}{RARE}") if t in counts] for tag in TAGS}
    values["geneval"] = mean(
        sum(e["correct"] for e in entries) / sum(e["total"] for e in entries)
        for entries in both.values()
    )
    rare = [tag for tag in values if tag.endswith(RARE)]
    values["rare"] = mean(values[tag] for tag in rare)
    values["common"] = mean(values[tag.removesuffix(RARE)] for tag in rare)
    kinds = scores["questions"]["types"].items()
    values |= {f"question: {kind}": entry["accuracy"] for kind, entry in kinds}
    values["questions"] = scores["questions"]["total"]["accuracy"]
    return values


def reconstruction_values(
    pipeline: Pipeline, shards: str, count: int, rounds: int, seed: int
) -> Json:
    """How well held-out images are reconstructed."""
    asked = read_questions(shards, pipeline.resolution, count)
    images = list({question.key: question.image for question in asked}.values())
    options = replace(pipeline.options, guidance=0.0, steps=rounds)
    with one_thread(pipeline.device):
        made = pipeline.reconstruct(images, options, seed)
    pairs = list(zip(images, made, strict=True))
    right = [(looks(a) & looks(b)).total() / looks(a).total() for a, b in pairs]
    return {
        "reconstructed objects": mean(right),
        "reconstruction error": mean(difference(*pair) for pair in pairs),
    }


def main(argv: list[str]) -> None:
    """Score and write."""
    parser = argparse.ArgumentParser("mini_paper.py score", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of its evaluation")
    parser.add_argument("--prompts", type=Path, required=True, help="of the evaluation")
    parser.add_argument("--limit", type=int, help="of the evaluation")
    parser.add_argument("--shards", required=True, help="held-out images to reconstruct")
    parser.add_argument("--images", type=int, default=64, help="to reconstruct (%(default)s)")
    parser.add_argument("--rounds", type=int, default=16, help="of reconstruction (%(default)s)")
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args(argv)
    prompts = read_prompts(options.prompts, options.limit)
    scores = json.loads((options.evaluation / "scores.json").read_text())
    values = category_values(scores) | image_values(options.evaluation, prompts)
    pipeline = Pipeline.load(options.checkpoint)
    values |= reconstruction_values(
        pipeline, options.shards, options.images, options.rounds, options.seed
    )
    result = {"arm": options.arm, "seed": options.seed, "images": len(prompts), "values": values}
    result |= {"checkpoint": options.checkpoint, "evaluation": str(options.evaluation)}
    write_json(options.out, result, indent=1)
