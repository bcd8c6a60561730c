"""The checker reads drawn images exactly, blurred ones nearly always, and no image out of noise."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from showo_data.mini import Object, Scene, draw, prompts, read_image, scene, score
from showo_data.mini.world import BACKGROUND

Look = tuple[str, str, str, tuple[float, ...]]


def _written(drawn: Scene) -> list[Look]:
    return sorted((o.colour, o.shape, o.size, tuple(map(float, o.centre))) for o in drawn.objects)


def _read(image: Image.Image) -> list[Look]:
    return sorted((d.colour, d.shape, d.size, d.centre) for d in read_image(image))


def _damaged(
    image: Image.Image, blur: float, noise: float, shrink: int, rng: np.random.Generator
) -> Image.Image:
    """What a coarse decoder does: lost detail and ringing, soft edges, wrong values."""
    if shrink > 1:
        small = image.resize((64 // shrink, 64 // shrink), Image.Resampling.BICUBIC)
        image = small.resize((64, 64), Image.Resampling.LANCZOS)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float64)
    noisy = blurred + rng.normal(0, noise, blurred.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def test_clean_images_are_read_back_exactly() -> None:
    for i in range(2000):
        drawn = scene(11, i)
        assert _read(draw(drawn)) == _written(drawn), i


@pytest.mark.parametrize(
    ("blur", "noise", "shrink", "least"),
    [(0.7, 8, 1, 0.99), (1.0, 12, 1, 0.99), (1.5, 15, 1, 0.97), (0, 10, 2, 0.99), (0, 10, 3, 0.99)],
)
def test_damaged_images_are_read_back(blur: float, noise: float, shrink: int, least: float) -> None:
    rng, right = np.random.default_rng(0), 0
    for i in range(200):
        drawn = scene(12, i)
        read = read_image(_damaged(draw(drawn), blur, noise, shrink, rng))
        looks = sorted((d.colour, d.shape, d.size) for d in read)
        right += looks == [look[:3] for look in _written(drawn)]
    assert right / 200 >= least, right / 200


@pytest.mark.parametrize("value", ["black", "gray", "white", "red"])
def test_a_plain_image_shows_no_object(value: str) -> None:
    plain = Image.new("RGB", (64, 64), value)
    assert all(thing.shape == "unknown" for thing in read_image(plain))
    assert not any(score(plain, prompt).correct for prompt in prompts(0, 5))


def test_noise_and_an_empty_image_are_never_correct() -> None:
    images = [Image.new("RGB", (64, 64), BACKGROUND)]
    rng = np.random.default_rng(0)
    for coarse in (1, 2, 4, 8, 16) * 4:
        values = rng.integers(0, 256, (64 // coarse, 64 // coarse, 3), dtype=np.uint8)
        images.append(Image.fromarray(values).resize((64, 64), Image.Resampling.BICUBIC))
    for image in images:
        for prompt in prompts(0, 1):
            assert not score(image, prompt).correct


def test_other_resolutions_and_modes_are_read() -> None:
    drawn = scene(0, 3)
    large = draw(drawn).resize((256, 256), Image.Resampling.BICUBIC).convert("RGBA")
    assert [look[:3] for look in _read(large)] == [look[:3] for look in _written(drawn)]


RED_CIRCLE = Object("circle", "red", "large", (16, 32))
BLUE_SQUARE = Object("square", "blue", "large", (48, 28))
BLUE_CIRCLE = Object("circle", "blue", "large", (16, 32))
RED_SQUARE = Object("square", "red", "large", (48, 28))


def _include(*items: dict[str, Any]) -> dict[str, Any]:
    return {"include": [{"count": 1, **item} for item in items]}


def test_each_aspect_is_judged_by_itself() -> None:
    wanted = _include(
        {"class": "circle", "color": "red", "position": ["left of", 1]},
        {"class": "square", "color": "blue"},
    )
    right = score(draw(Scene((RED_CIRCLE, BLUE_SQUARE))), wanted)
    assert (right.correct, right.count, right.shape, right.colour, right.position) == (True,) * 5
    assert right.reason == ""

    swapped = score(draw(Scene((BLUE_CIRCLE, RED_SQUARE))), wanted)
    assert (swapped.correct, swapped.count, swapped.shape, swapped.colour) == (
        False,
        True,
        True,
        True,
    )
    assert swapped.position is False
    assert swapped.reason.startswith("position wrong: the image shows blue circle, red square")

    alone = score(draw(Scene((RED_CIRCLE,))), wanted)
    assert (alone.correct, alone.count, alone.shape, alone.colour) == (False,) * 4


def test_colours_bound_to_the_wrong_shapes_are_wrong() -> None:
    wanted = _include({"class": "circle", "color": "red"}, {"class": "square", "color": "blue"})
    swapped = score(draw(Scene((BLUE_CIRCLE, RED_SQUARE))), wanted)
    assert (swapped.correct, swapped.shape, swapped.colour) == (False, True, True)
    assert swapped.reason.startswith("combination wrong")


def test_counts_are_exact() -> None:
    drawn = next(s for s in (scene(0, i) for i in range(99)) if len(s.objects) == 3)
    shape, image = drawn.objects[0].shape, draw(drawn)
    assert score(image, {"include": [{"class": shape, "count": 3}]}).correct
    assert not score(image, {"include": [{"class": shape, "count": 2}]}).correct
    assert not score(image, {"include": [{"class": shape, "count": 4}]}).correct


@pytest.mark.parametrize(
    ("side", "holds"), [("left of", True), ("right of", False), ("above", True), ("below", False)]
)
def test_a_diagonal_satisfies_both_words(side: str, holds: bool) -> None:
    image = draw(
        Scene(
            (
                Object("triangle", "green", "small", (16, 16)),
                Object("cross", "white", "small", (48, 48)),
            )
        )
    )
    wanted = _include({"class": "triangle", "position": [side, 1]}, {"class": "cross"})
    assert score(image, wanted).position is holds
