"""Edits of the mini world, and the checker of what changed and what stayed untouched."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_data import FlowSpec, Sample, Source, vq_transform
from showo_data.cli import main_edits
from showo_data.members import EDIT_CODES
from showo_data.mini import COLOURS, EDIT_KINDS, Object, Scene, SceneEdit, draw, score_edit
from showo_data.mini.edits import edit_sample, sample_edit
from showo_data.mini.world import PLACES, apart

edits = st.integers(0, 10**6).map(lambda index: sample_edit(5, index))
few = settings(max_examples=60, deadline=None)


def verdict(objects: tuple[Object, ...], edit: SceneEdit) -> tuple[bool, bool]:
    score = score_edit(draw(Scene(objects)), edit)
    assert bool(score.reason) == (not (score.edit and score.untouched))
    return score.edit, score.untouched


@few
@given(edits)
def test_the_wanted_image_is_right_and_the_source_is_not(edit: SceneEdit) -> None:
    assert verdict(edit.after.objects, edit) == (True, True)
    assert verdict(edit.before.objects, edit) == (False, True)


@few
@given(edits, st.integers(0, 10**6))
def test_a_touched_object_is_found(edit: SceneEdit, seed: int) -> None:
    """Recoloured, removed or moved objects that the edit is not about, and objects that appear."""
    rng = random.Random(seed)
    after = edit.after.objects
    kept = [thing for thing in edit.before.objects if thing in after]
    for thing in kept:
        others = tuple(other for other in after if other is not thing)
        colour = rng.choice([name for name in COLOURS if name != thing.colour])
        assert verdict((*others, replace(thing, colour=colour)), edit) == (True, False)
        assert verdict(others, edit) == (True, False)
        for place in free_places(thing, (*edit.before.objects, *after)):
            assert verdict((*others, replace(thing, centre=place)), edit) == (True, False)
    new = Object("cross", rng.choice(tuple(COLOURS)), "small", (0, 0))
    for place in free_places(new, (*edit.before.objects, *after)):
        assert verdict((*after, replace(new, centre=place)), edit) == (True, False)


def free_places(thing: Object, others: tuple[Object, ...]) -> list[tuple[int, int]]:
    """Places apart from where anything is or was."""
    places = [(x, y) for x in PLACES for y in PLACES]
    return [p for p in places if all(apart(replace(thing, centre=p), o) for o in others)]


@few
@given(edits)
def test_another_edit_of_the_object_is_wrong(edit: SceneEdit) -> None:
    before, after = edit.before.objects, edit.after.objects
    (new,) = [thing for thing in after if thing not in before] or [None]
    others = tuple(thing for thing in after if thing is not new)
    if new is None:  # removed: another object in its place
        (gone,) = (thing for thing in before if thing not in after)
        colour = next(name for name in COLOURS if name != gone.colour)
        assert verdict((*others, replace(gone, colour=colour)), edit) == (False, True)
        return
    assert verdict(others, edit) == (False, True), "nothing is where the object should be"
    shape = "circle" if new.shape != "circle" else "square"
    assert verdict((*others, replace(new, shape=shape)), edit) == (False, True)
    colour = next(name for name in COLOURS if name != new.colour)
    if replace(new, colour=colour) not in before:
        assert verdict((*others, replace(new, colour=colour)), edit) == (False, True)


def test_edits_are_of_every_kind_and_named_without_doubt() -> None:
    made = [sample_edit(0, index) for index in range(400)]
    assert min(Counter(edit.kind for edit in made)[kind] for kind in EDIT_KINDS) > 70
    assert sum(len(edit.before.objects) == 2 for edit in made) > 250
    for edit in made:
        names = [f"the {o.colour} {o.shape}" for o in edit.before.objects]
        assert len(set(names)) == len(names)
        if edit.kind != "add":
            assert sum(name in edit.instruction for name in names) == 1, edit.instruction
    assert made == [sample_edit(0, index) for index in range(400)]


def test_shards_of_triples(tmp_path: Path) -> None:
    options = ["--edits", "5", "--validation", "2", "--shard-size", "3", "--seed", "4"]
    assert main_edits([str(tmp_path), *options]) == 0
    names = sorted(path.name for path in tmp_path.glob("*.tar"))
    assert names == ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
    transform = vq_transform(64)
    spec = FlowSpec(
        flow="edit",
        kind="edit",
        urls=(str(tmp_path / "train-{000000..000001}.tar"),),
        batch=1,
        transform=transform,
        encoded=EDIT_CODES,
        streams=1,
        window=1,
    )
    for index, found in enumerate(Source(spec)[position] for position in range(5)):
        assert isinstance(found, Sample)
        edit = sample_edit(4, index)
        assert found.text == edit.instruction
        assert found.image_3HW is not None and found.source_3HW is not None
        assert (found.image_3HW == transform(draw(edit.after))).all()
        assert (found.source_3HW == transform(draw(edit.before))).all()
        stored = edit_sample(4, index)["json"]
        assert SceneEdit.from_json(stored, edit.instruction) == edit
    with pytest.raises(ValueError, match="seed 4, not 5"):
        main_edits([str(tmp_path), *options[:-1], "5"])
