"""Sheets of images: grids with titles, and images with their texts below."""

from collections.abc import Sequence
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, FAINT = (255, 255, 255), (24, 26, 32), (110, 114, 124)
_GAP = 6
_SHEET_GAP = 14  # wider: a cell of a sheet may hold several images
_TEXT_PX = 13
_LINE_PX = 17
_CHARACTER_PX = 6.6  # average advance of the default font at this size


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_TEXT_PX)


def fitted(image: Image.Image, tile: int) -> Image.Image:
    """Resize to a longest side of ``tile`` pixels; enlarging keeps the pixels visible."""
    scale = tile / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), how)


def _lines(text: str, width: int) -> list[str]:
    """Wrap the text into lines of about ``width`` pixels."""
    characters = max(4, int(width / _CHARACTER_PX))
    return [line for part in text.splitlines() for line in wrap(part, characters)]


def _write(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    lines: Sequence[str],
    colour: tuple[int, int, int],
) -> None:
    x, y = position
    for number, line in enumerate(lines):
        draw.text((x, y + number * _LINE_PX), line, fill=colour, font=_font())


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    tile: int = 128,
) -> Image.Image:
    """Arrange images in a grid, with titles above the columns and left of the rows.

    Args:
        rows: images, row by row; rows may differ in length.
        column_titles: one per column, or none.
        row_titles: one per row, or none.
        tile: longest side of an image in the grid, pixels.

    Raises:
        ValueError: no image, or a number of titles that does not match the grid.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("a grid needs at least one image")
    for what, titles, count in (("column", column_titles, columns), ("row", row_titles, len(rows))):
        if titles and len(titles) != count:
            raise ValueError(f"{len(titles)} {what} titles for {count} {what}s")
    heads = [_lines(title, tile) for title in column_titles]
    sides = [_lines(title, tile) for title in row_titles]
    top = _GAP + _LINE_PX * max(map(len, heads), default=0)
    left = _GAP + (tile if sides else 0)
    pitch = tile + _GAP
    sheet = Image.new("RGB", (left + columns * pitch, top + len(rows) * pitch), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        _write(draw, (left + column * pitch, _GAP // 2), lines, FAINT)
    for row, lines in enumerate(sides):
        _write(draw, (_GAP, top + row * pitch), lines, FAINT)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet.paste(fitted(image, tile), (left + column * pitch, top + row * pitch))
    return sheet


def captioned_sheet(
    images: Sequence[tuple[Image.Image, str]], columns: int = 6, tile: int = 144
) -> Image.Image:
    """Arrange images in rows, each with its whole text below it.

    Args:
        images: (image, text) pairs; line breaks in the text are kept.
        columns: images in a row.
        tile: longest side of an image, pixels.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("a sheet needs at least one image")
    columns = min(columns, len(images))
    tiles = [fitted(image, tile) for image, _ in images]
    texts = [_lines(text, tile) for _, text in images]
    heights = [
        2 * _GAP
        + max(tall.height for tall in tiles[start : start + columns])
        + _LINE_PX * max(map(len, texts[start : start + columns]))
        for start in range(0, len(images), columns)
    ]
    pitch = tile + _SHEET_GAP
    size = (2 * _GAP + columns * pitch - _SHEET_GAP, _GAP + sum(heights))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (image, lines) in enumerate(zip(tiles, texts, strict=True)):
        row, column = divmod(number, columns)
        x, y = _GAP + column * pitch, _GAP + sum(heights[:row])
        sheet.paste(image, (x, y))
        _write(draw, (x, y + image.height + 2), lines, INK)
    return sheet
