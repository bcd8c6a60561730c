"""Patchworks for the image tokenizer: crowds without overlap, and whole cells of two of them."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from showo_data.mini import draw, patchwork, scene
from showo_data.mini.world import CELL, RESOLUTION, crowd
from tests.data.conftest import SMALL

CELLS = RESOLUTION // CELL


def _cells(image: Image.Image) -> np.ndarray:
    """(cells, bytes of a cell), row by row."""
    rows = np.asarray(image).reshape(CELLS, CELL, CELLS, CELL, 3)
    return rows.swapaxes(1, 2).reshape(CELLS**2, -1)


@pytest.mark.parametrize("index", range(20))
def test_every_cell_is_one_of_two_crowds_at_its_place(index: int) -> None:
    first, second = (_cells(draw(crowd(5, 2 * index + k))) for k in range(2))
    made = _cells(patchwork(5, index))
    own, foreign = ((made == cells).all(axis=1) for cells in (first, second))
    assert (own | foreign).all()


def test_whole_objects_remain_and_others_are_cut() -> None:
    pairs = [(_cells(draw(crowd(5, 2 * i))), _cells(patchwork(5, i))) for i in range(60)]
    foreign = [(crowded != made).any(axis=1).mean() for crowded, made in pairs]
    assert min(foreign) < 0.05 and 0.3 < max(foreign) < 0.65


def test_nothing_overlaps_in_a_crowd() -> None:
    for index in range(40):
        covered = np.zeros((RESOLUTION, RESOLUTION), dtype=int)
        for thing in crowd(5, index).objects:
            (x, y), radius = thing.centre, thing.radius
            rows, columns = (slice(max(0, c - radius), c + radius) for c in (y, x))
            covered[rows, columns] += 1
        assert covered.max() == 1


def test_crowds_show_the_cells_of_scenes() -> None:
    common = {bytes(cell) for i in range(1500) for cell in _cells(draw(scene(5, i)))}
    crowded = {bytes(cell) for i in range(200) for cell in _cells(draw(crowd(5, i)))}
    assert len(crowded & common) > 0.9 * len(common)


def test_crowds_are_crowded() -> None:
    assert np.mean([len(crowd(5, index).objects) for index in range(100)]) > 4


def test_shards_hold_the_images(mini: Path) -> None:
    shards = sorted(mini.glob("patchwork-*.tar"))
    assert len(shards) == 3
    with tarfile.open(shards[1]) as shard:
        stored = Image.open(shard.extractfile("0000000024.png"))  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(stored), np.asarray(patchwork(SMALL.seed, 24)))
