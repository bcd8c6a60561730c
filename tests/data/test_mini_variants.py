"""The skewed mini world with sparse captions: shares as stated, questions complete, the default untouched."""

import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_data.mini import COLOURS, questions, scene
from showo_data.mini.drawing import place, relation
from showo_data.mini.language import WORDINGS, caption, plural
from showo_data.mini.world import TYPICAL, Object, Scene
from showo_data.mini.writing import MiniSettings, image_sample, write_mini
from tests.data.conftest import SMALL

SKEW = 0.6
PLACES = ("top", "bottom", "left", "right", "middle")
SCENES = st.builds(
    scene, st.integers(0, 2**32), st.integers(0, 2**32), st.sampled_from((0.0, SKEW))
)


def is_share(found: list[bool], expected: float) -> bool:
    """Whether a share of independent draws is within five standard deviations of the expected one."""
    return (
        abs(sum(found) / len(found) - expected)
        < 5 * (expected * (1 - expected) / len(found)) ** 0.5
    )


def samples(folder: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Caption and record of every sample in the shards of a folder."""
    for path in sorted(folder.glob(f"{name}-*.tar")):
        with tarfile.open(path) as shard:
            read = {member.name: shard.extractfile(member).read() for member in shard}  # type: ignore[union-attr]
        for key in sorted({name.partition(".")[0] for name in read}):
            yield read[f"{key}.txt"].decode(), json.loads(read[f"{key}.json"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same skewed images with sparse and with complete captions."""
    root = tmp_path_factory.mktemp("variants")
    for captions in ("sparse", "complete"):
        settings = replace(SMALL, images=1200, shard_size=600, captions=captions, skew=SKEW)
        write_mini(root / captions, replace(settings, texts=1, validation=200))
    return {captions: root / captions for captions in ("sparse", "complete")}


def test_sparse_captions_omit_and_correlate_at_the_stated_rates(folders: dict[str, Path]) -> None:
    coloured, sized, placed, typical, shown, side = [], [], [], [], [], []
    for words, record in samples(folders["sparse"], "train"):
        things = [Object(**thing) for thing in record["objects"]]
        first = things[0]
        shown.append(first.colour == TYPICAL[first.shape][0])
        if len({thing.shape for thing in things}) == 2:
            continue
        names_colour = any(colour in words for colour in COLOURS)
        if len(things) == 1 or Scene(tuple(things)).same:
            coloured.append(names_colour)
            sized.append(first.size in words)
        if len(things) == 1:
            placed.append(any(name in words for name in PLACES))
            side.append(TYPICAL[first.shape][1] in place(first.centre))
        if names_colour:
            typical.append(f"{TYPICAL[first.shape][0]} {first.shape}" in words)
    wording = WORDINGS["sparse"]
    assert is_share(coloured, 1 - wording.colourless)
    assert is_share(sized, wording.sized)
    assert is_share(placed, wording.placed)
    assert is_share(shown, SKEW + (1 - SKEW) / len(COLOURS))
    assert is_share(side, SKEW + (1 - SKEW) / 3)
    # What the words say is as skewed as the images: omission depends on chance alone.
    assert is_share(typical, sum(shown) / len(shown))


def test_both_folders_show_the_same_images(folders: dict[str, Path]) -> None:
    sparse, complete = (list(samples(folders[name], "train")) for name in ("sparse", "complete"))
    assert [r["objects"] for _, r in sparse] == [r["objects"] for _, r in complete]
    assert sum(len(words) for words, _ in complete) > 1.5 * sum(len(words) for words, _ in sparse)


def test_validation_images_are_even(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        records = [record for _, record in samples(folder, "val")]
        typical = [
            r["objects"][0]["colour"] == TYPICAL[r["objects"][0]["shape"]][0] for r in records
        ]
        assert is_share(typical, 1 / len(COLOURS))


def names_everything(words: str, things: tuple[Object, ...]) -> bool:
    """Whether a caption names size, colour, shape, and the place or relation, of every object."""
    scene = Scene(things)
    if scene.same:
        return f"{things[0].size} {things[0].colour} {plural(things[0].shape)}" in words
    names = [f"{thing.size} {thing.colour} {thing.shape}" for thing in things]
    placed = all(f"{n} {place(t.centre)}" in words for n, t in zip(names, things, strict=True))
    if len(things) == 1:
        return placed
    related = any(
        (side := relation(things[i].centre, things[j].centre))
        and f"{names[i]} {side} a {names[j]}" in words
        for i, j in ((0, 1), (1, 0))
    )
    return placed or related


@settings(deadline=None, max_examples=100)
@given(drawn=SCENES, seed=st.integers(0, 2**32))
def test_complete_captions_name_everything(drawn: Scene, seed: int) -> None:
    assert names_everything(
        caption(drawn, random.Random(seed), WORDINGS["complete"]), drawn.objects
    )


@settings(deadline=None, max_examples=100)
@given(drawn=SCENES, seed=st.integers(0, 2**32))
def test_questions_cover_what_captions_omit(drawn: Scene, seed: int) -> None:
    asked = dict(questions(drawn, random.Random(seed), WORDINGS["complete"]))
    assert names_everything(asked["what is shown?"], drawn.objects)
    first = drawn.objects[0]
    if drawn.same:
        assert asked[f"what color are the {plural(first.shape)}?"] == first.colour
        assert asked["what shape are the objects?"] == plural(first.shape)
        return
    for thing in drawn.objects:
        name = f"the {thing.colour} {thing.shape}"
        assert asked[f"is {name} small or large?"] == thing.size
        others = [other for other in drawn.objects if other is not thing]
        if thing.shape not in {other.shape for other in others}:
            assert asked[f"what color is the {thing.shape}?"] == thing.colour
        if thing.colour not in {other.colour for other in others}:
            assert asked[f"what shape is the {thing.colour} object?"] == thing.shape
        if not others:
            assert asked[f"where is {name}?"] == place(thing.centre)


def test_the_default_world_is_that_of_before() -> None:
    assert [image_sample(0, index)["txt"] for index in range(9, 13)] == [
        "a red square and a green circle",
        "three small red squares",
        "a small white cross and a large purple cross",
        "four blue circles",
    ]


def test_a_folder_without_the_new_settings_is_the_default(tmp_path: Path) -> None:
    write_mini(tmp_path, SMALL)
    noted = json.loads((tmp_path / "mini.json").read_text())
    assert not {"captions", "skew"} & set(noted)
    write_mini(tmp_path, SMALL)
    with pytest.raises(ValueError, match="captions None, not 'sparse'"):
        write_mini(tmp_path, replace(SMALL, captions="sparse"))


@pytest.mark.parametrize(("name", "value"), [("captions", "short"), ("skew", 1.0), ("skew", -0.1)])
def test_settings_that_make_no_world_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        MiniSettings(**{name: value})
