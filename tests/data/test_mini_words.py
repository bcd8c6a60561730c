"""Scenes come in the intended shares, and every text about them is true."""

import random
import re
from collections import Counter
from typing import Any

import pytest

from showo_data.mini import (
    COLOURS,
    SHAPES,
    TAGS,
    Scene,
    caption,
    draw,
    plain_text,
    prompts,
    questions,
    scene,
    score,
)
from showo_data.mini.drawing import OPPOSITE, place, relation
from showo_data.mini.language import NUMBERS, plural
from showo_data.mini.world import RESOLUTION

_PHRASE = re.compile(
    rf"(?P<count>a|two|three|four) ((?P<size>small|large) )?((?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?P<shape>{'|'.join((*map(plural, SHAPES), *SHAPES))})\b"
)


def _parse(words: str) -> tuple[list[dict[str, Any]], list[str | None]]:
    """An independent reading of a caption: what a prompt's ``include`` would be, and the sizes."""
    include, sizes = [], []
    for found in _PHRASE.finditer(words):
        shape = next(s for s in SHAPES if found["shape"] in (s, plural(s)))
        count = 1 if found["count"] == "a" else NUMBERS.index(found["count"])
        include.append({"class": shape, "count": count})
        if found["colour"]:
            include[-1]["color"] = found["colour"]
        sizes += [found["size"]] * count
    side = next((side for side in OPPOSITE if f" {side} " in words), None)
    if side:
        include[0]["position"] = [side, 1]
    return include, sizes


def test_a_scene_is_decided_by_seed_and_index_alone() -> None:
    assert scene(3, 17) == scene(3, 17)
    assert len({scene(3, i) for i in range(50)}) > 45
    assert scene(3, 17) != scene(4, 17)
    assert draw(scene(3, 17)).tobytes() == draw(scene(3, 17)).tobytes()


def test_objects_stay_inside_and_apart() -> None:
    for i in range(500):
        objects = scene(0, i).objects
        for a in objects:
            assert all(a.radius < c < RESOLUTION - a.radius for c in a.centre)
            for b in objects:
                distance = max(abs(p - q) for p, q in zip(a.centre, b.centre, strict=True))
                assert a is b or distance > a.radius + b.radius


def test_every_place_is_taken_and_has_a_name_of_its_own() -> None:
    centres = {thing.centre for i in range(300) for thing in scene(0, i).objects}
    assert len(centres) == len({place(centre) for centre in centres}) == 9


def test_shares_of_one_two_and_more_objects() -> None:
    counts = Counter(len(scene(1, i).objects) for i in range(4000))
    assert counts[1] / 4000 == pytest.approx(0.45, abs=0.03)
    assert counts[2] / 4000 == pytest.approx(0.35, abs=0.03)
    assert (counts[3] + counts[4]) / 4000 == pytest.approx(0.20, abs=0.03)


def test_captions_are_true_and_complete() -> None:
    rng = random.Random(0)
    for i in range(600):
        drawn = scene(2, i)
        words = caption(drawn, rng)
        assert words == words.strip(), "a Source would remove the spaces"
        include, sizes = _parse(words)
        verdict = score(draw(drawn), {"include": include})
        assert verdict.correct, (words, verdict.reason)
        if named := sorted(size for size in sizes if size):
            assert named == sorted(thing.size for thing in drawn.objects), words
        if " at the " in words or " in the middle" in words:
            assert words.endswith(place(drawn.objects[0].centre)), words


def test_captions_vary() -> None:
    rng = random.Random(0)
    assert len({caption(scene(0, 1), rng) for _ in range(200)}) >= 12


def _truth(drawn: Scene, question: str) -> str | None:
    """An independent answer to the questions that need no further words."""
    things = drawn.objects
    if found := re.fullmatch(r"is there a (\w+) (\w+)\?", question):
        present = any((t.colour, t.shape) == found.groups() for t in things)
        return "yes" if present else "no"
    if question.startswith("how many"):
        return NUMBERS[len(things)]
    if found := re.fullmatch(r"what color (?:is|are) the (\w+)\?", question):
        (colour,) = {t.colour for t in things if found[1] in (t.shape, plural(t.shape))}
        return colour
    if found := re.fullmatch(r"what shape is the (\w+) object\?", question):
        (shape,) = {t.shape for t in things if t.colour == found[1]}
        return shape
    if found := re.fullmatch(r"is the (\w+) (\w+) small or large\?", question):
        (size,) = {t.size for t in things if (t.colour, t.shape) == found.groups()}
        return size
    return None


def _assert_related(drawn: Scene, side: str, question: str, answer: str) -> None:
    """ "where is A?" "left of B", and "what is left of B?" "A", both say A, then B."""
    looks = re.findall(r"the (\w+) (\w+)", f"{question} {answer}")
    subject, other = looks if question.startswith("where") else reversed(looks)
    centres = {(thing.colour, thing.shape): thing.centre for thing in drawn.objects}
    assert relation(centres[subject], centres[other]) == side, (question, answer)


def test_answers_are_true() -> None:
    rng, asked, presence = random.Random(0), Counter[str](), Counter[str]()
    for i in range(400):
        drawn = scene(3, i)
        for question, answer in questions(drawn, rng):
            asked[question.split()[0] + " " + question.split()[1]] += 1
            if question.startswith("is there"):
                presence[answer] += 1
            truth = _truth(drawn, question)
            assert truth is None or truth == answer, (drawn, question)
            if question != "what is shown?" and (
                side := next((s for s in OPPOSITE if f" {s} " in f" {question} {answer} "), None)
            ):
                _assert_related(drawn, side, question, answer)
    assert {"what color", "what shape", "what is", "how many", "where is", "is there"} <= set(asked)
    assert 0.4 < presence["yes"] / presence.total() < 0.6


def test_plain_text_is_seeded_and_varied() -> None:
    assert plain_text(random.Random(1)) == plain_text(random.Random(1))
    texts = {plain_text(random.Random(i)) for i in range(200)}
    assert len(texts) > 150
    assert all(text.endswith(".") for text in texts)


def test_prompts_cover_the_six_categories_without_repeats() -> None:
    made = prompts(seed=0, per_tag=6)
    assert made == prompts(seed=0, per_tag=6)
    assert Counter(prompt["tag"] for prompt in made) == dict.fromkeys(TAGS, 6)
    for tag in TAGS[1:]:  # there are only five single objects
        assert len({prompt["prompt"] for prompt in made if prompt["tag"] == tag}) == 6
    for prompt in made:
        include, _ = _parse(prompt["prompt"])
        assert include == prompt["include"]
