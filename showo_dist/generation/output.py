"""Write results to a folder: PNG images with their settings, a line of JSON per result, a contact sheet."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from showo_data.files import written_aside
from showo_dist.logging.grids import captioned_sheet
from showo_dist.logging.wandb_run import WandbRun

_SHEET = 48  # images on a contact sheet


def save_image(image: Image.Image, path: Path, settings: Mapping[str, object]) -> None:
    """Write a PNG with ``settings`` as text entries; the file appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = PngInfo()
    for key, value in settings.items():
        notes.add_itxt(key, str(value))
    with written_aside(path) as stream:
        image.save(stream, "PNG", pnginfo=notes)


class Album:
    """A folder of results.

    Args:
        folder: created if missing; files of the same names are replaced.
        lines: name of the file with one JSON object per result.
        settings: settings of all results, recorded in every image and line.
        wandb: also log images there.
    """

    def __init__(
        self, folder: Path, lines: str, settings: Mapping[str, Any], wandb: WandbRun | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._settings, self._wandb = folder, dict(settings), wandb
        self._lines = (folder / lines).open("w", encoding="utf-8")
        self._shown: list[tuple[Image.Image, str]] = []

    def add(self, image: Image.Image, name: str, caption: str, about: Mapping[str, Any]) -> None:
        """Write an image as ``name.png``; ``about`` is recorded with the common settings."""
        record = {"file": f"{name}.png", **about}
        save_image(image, self.folder / record["file"], {**self._settings, **about})
        self.write(record)
        self.show(image, caption)
        if self._wandb is not None:
            self._wandb.image(len(self._shown), name, image, caption)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one line of JSON about a result, whose own settings count before the common ones."""
        line = json.dumps({**record, **self._settings, **record}, ensure_ascii=False)
        self._lines.write(line + "\n")
        self._lines.flush()

    def show(self, image: Image.Image, caption: str) -> None:
        """Put an image on the contact sheet while there is room."""
        if len(self._shown) < _SHEET:
            self._shown.append((image, caption))

    def close(self) -> None:
        """Write the contact sheet and close the file of lines."""
        self._lines.close()
        if self._shown:
            captioned_sheet(self._shown, columns=8).save(self.folder / "sheet.png")
        if self._wandb is not None:
            self._wandb.close()
