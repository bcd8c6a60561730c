"""Images are in their cells of a grid, and texts below or beside them."""

import numpy as np
import pytest
from PIL import Image

from showo_dist.logging.grids import BACKGROUND, captioned_sheet, fitted, labelled_grid

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _plain(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def _boxes(sheet: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(top, left) of the 32-pixel squares of one colour."""
    inside = (np.asarray(sheet) == colour).all(-1)
    return [
        (int(y), int(x))
        for y, x in np.argwhere(inside)
        if not inside[y - 1, x] and not inside[y, x - 1]
    ]


def test_grid_keeps_rows_and_columns() -> None:
    grid = labelled_grid([[_plain(RED), _plain(BLUE)], [_plain(BLUE)]], tile=32)
    (red,), (right, below) = _boxes(grid, RED), sorted(_boxes(grid, BLUE))
    assert right[0] == red[0] and right[1] > red[1] + 31
    assert below[1] == red[1] and below[0] > red[0] + 31
    assert (np.asarray(grid) == RED).all(-1).sum() == 32 * 32


def test_titles_do_not_cover_images() -> None:
    titles = ["a title that needs several lines of the narrow column", "b"]
    grid = labelled_grid([[_plain(RED), _plain(BLUE)]], titles, ["row"], tile=32)
    bare = labelled_grid([[_plain(RED), _plain(BLUE)]], tile=32)
    assert (np.asarray(grid) == RED).all(-1).sum() == 32 * 32
    (top, left), (bare_top, bare_left) = _boxes(grid, RED)[0], _boxes(bare, RED)[0]
    assert top > bare_top + 40 and left >= bare_left + 32
    above = np.asarray(grid)[:top]
    assert (above != BACKGROUND).any()


def test_wrong_titles_are_refused() -> None:
    with pytest.raises(ValueError, match="1 column titles for 2 columns"):
        labelled_grid([[_plain(RED), _plain(BLUE)]], ["a"])
    with pytest.raises(ValueError, match="2 row titles for 1 rows"):
        labelled_grid([[_plain(RED)]], [], ["a", "b"])
    with pytest.raises(ValueError, match="at least one image"):
        labelled_grid([[]])
    with pytest.raises(ValueError, match="at least one image"):
        captioned_sheet([])


def test_sheet_has_room_for_the_longest_text() -> None:
    short = captioned_sheet([(_plain(RED), "a"), (_plain(BLUE), "b")], columns=1, tile=32)
    long = captioned_sheet([(_plain(RED), "a " * 60), (_plain(BLUE), "b")], columns=1, tile=32)
    assert long.height > short.height + 100
    for sheet in (short, long):
        assert (np.asarray(sheet) == BLUE).all(-1).sum() == 32 * 32


def test_fitted_keeps_proportions() -> None:
    assert fitted(_plain(RED, (20, 10)), 40).size == (40, 20)
    assert fitted(_plain(RED, (400, 800)), 40).size == (20, 40)
