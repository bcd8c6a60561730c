"""Prompts and images of a command line, each by itself: a bad one is named, the rest goes on."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from showo_dist.generation.conversation import Part
from showo_dist.generation.edits import read_image
from showo_dist.generation.request import complain

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_prompts(path: str | Path) -> list[str]:
    """One prompt per line; an empty line is not one.

    Raises:
        ValueError: it cannot be read, or holds no prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: prompts cannot be read ({error})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: holds no prompt")
    return prompts


def image_paths(names: Iterable[str]) -> list[Path]:
    """Files as they are named; a folder stands for the images in it, in the order of their names.

    Raises:
        ValueError: no image at all.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            if path.is_dir()
            else []
        )
        paths += inside if path.is_dir() else [path]
    if not paths:
        raise ValueError("no image is named")
    return paths


class Failures:
    """What went wrong with single inputs.

    Attributes:
        count: how many.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: Exception) -> None:
        """Say it and go on."""
        self.count += 1
        complain(str(error))

    def image(self, path: Path) -> Image.Image | None:
        """The image, or None when it cannot be read."""
        try:
            return read_image(path)
        except ValueError as error:
            self.add(error)
            return None

    @property
    def exit_code(self) -> int:
        """1 when something was left out."""
        return 1 if self.count else 0


def read_parts(path: str | Path) -> list[list[tuple[str, str]]]:
    """Prompts of texts and images: one JSON list per line of ``{"text": …}`` and ``{"image": PATH}``.

    Raises:
        ValueError: names the file and the line that is not one.
    """
    rows = []
    for number, line in enumerate(read_prompts(path), start=1):
        try:
            row = [item for entry in json.loads(line) for item in entry.items()]
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: prompt {number} is not a JSON list ({error})") from None
        if not row or any(kind not in ("text", "image") for kind, _ in row):
            raise ValueError(
                f'{path}: prompt {number}: expected {{"text": …}} and {{"image": PATH}}'
            )
        rows.append(row)
    return rows


def opened(row: Sequence[tuple[str, str]]) -> list[Part]:
    """The images of such a prompt read.

    Raises:
        ValueError: one cannot be.
    """
    return [read_image(value) if kind == "image" else value for kind, value in row]
