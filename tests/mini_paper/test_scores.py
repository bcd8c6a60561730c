"""Statements of long prompts, and prompts whose rare combinations stand apart."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mini_paper.prompts import COUNTS, LONG, RARE, write
from mini_paper.scoring import category_values, difference, diversity, looks, statements

from showo_data.mini import COLOURS, SHAPES, Scene, draw, read_image, scene
from showo_data.mini.drawing import place
from showo_data.mini.world import TYPICAL

PAIRS = st.builds(scene, st.integers(0, 2**32), st.integers(0, 2**32)).filter(
    lambda drawn: len(drawn.objects) == 2 and not drawn.same
)


def wanted(drawn: Scene) -> list[dict[str, Any]]:
    return [
        {"class": t.shape, "count": 1, "color": t.colour, "size": t.size, "place": place(t.centre)}
        for t in drawn.objects
    ]


@settings(deadline=None, max_examples=30)
@given(drawn=PAIRS)
def test_all_statements_hold_for_the_image_itself(drawn: Scene) -> None:
    held = statements(read_image(draw(drawn)), wanted(drawn))
    assert held == [True] * 8
    assert statements([], wanted(drawn)) == [False] * 8


@settings(deadline=None, max_examples=30)
@given(drawn=PAIRS, seed=st.integers(0, 2**32))
def test_one_wrong_attribute_is_one_statement(drawn: Scene, seed: int) -> None:
    rng, include = random.Random(seed), wanted(drawn)
    colours = [c for c in COLOURS if c not in {thing.colour for thing in drawn.objects}]
    other = {"small": "large", "large": "small"}
    found = read_image(draw(drawn))
    assume(include[0]["class"] != include[1]["class"])
    assert sum(statements(found, [{**include[0], "color": rng.choice(colours)}, include[1]])) == 7
    assert (
        sum(statements(found, [{**include[0], "size": other[include[0]["size"]]}, include[1]])) == 7
    )
    absent = [s for s in SHAPES if s not in {thing.shape for thing in drawn.objects}]
    # Without an object of the shape, nothing about it counts.
    assert sum(statements(found, [{**include[0], "class": rng.choice(absent)}, include[1]])) == 4
    assert sum(statements(found[:1], include)) == 4


@settings(deadline=None, max_examples=30)
@given(drawn=PAIRS)
def test_reconstructions_are_compared_object_by_object(drawn: Scene) -> None:
    image = draw(drawn)
    moved = draw(Scene((drawn.objects[0],)))
    assert (looks(image) & looks(image)).total() == 2
    assert (looks(image) & looks(moved)).total() == 1
    assert difference(image, image) == 0 and 0 < difference(image, moved) < 1
    assert diversity([("a", image), ("a", moved), ("b", image)]) == difference(image, moved)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write(path, seed=1)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_300_prompts_with_rare_ones_apart(written: list[dict[str, Any]]) -> None:
    assert Counter(prompt["tag"] for prompt in written) == COUNTS and len(written) == 300
    for prompt in written:
        pairs = [(entry.get("color"), TYPICAL[entry["class"]][0]) for entry in prompt["include"]]
        rare = any(colour not in (None, typical) for colour, typical in pairs)
        assert rare == prompt["tag"].endswith(RARE), prompt
        for entry in prompt["include"] if prompt["tag"].startswith(LONG) else ():
            words = f"{entry['size']} {entry['color']} {entry['class']} {entry['place']}"
            assert words in prompt["prompt"]


def test_prompts_depend_on_the_seed_alone(tmp_path: Path, written: list[dict[str, Any]]) -> None:
    write(tmp_path / "same.jsonl", seed=1)
    write(tmp_path / "other.jsonl", seed=2)
    same, other = ((tmp_path / f"{n}.jsonl").read_text().splitlines() for n in ("same", "other"))
    assert list(map(json.loads, same)) == written != list(map(json.loads, other))


def test_means_over_categories() -> None:
    tags = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    counts = {tag: (i, 10) for i, tag in enumerate(tags)}
    counts |= {"colors, rare": (9, 30), "long": (0, 5)}
    categories = {
        tag: {"correct": right, "total": total, "accuracy": right / total}
        for tag, (right, total) in counts.items()
    }
    answers = {"total": {"accuracy": 0.75}, "types": {"size": {"accuracy": 0.5}}}
    values = category_values({"categories": categories, "questions": answers})
    # Images of a category count alike, whether common or rare; categories count alike.
    assert values["geneval"] == pytest.approx((0 + 0.1 + 0.2 + 12 / 40 + 0.4 + 0.5) / 6)
    assert values["rare"] == pytest.approx(0.3) and values["common"] == pytest.approx(0.3)
    assert values["question: size"] == 0.5 and values["questions"] == 0.75
    assert "long" not in values
