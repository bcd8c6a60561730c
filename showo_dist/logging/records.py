"""The files of a run: one JSON object per line, appended and flushed at once."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines text; a line that a killed writer left unfinished is left out."""
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none where there is no such file."""
    return parse_lines(path.read_text()) if path.is_file() else []


def drop_after(path: Path, step: int) -> None:
    """Remove the lines of later steps, and an unfinished one, in one rename.

    Steps after a checkpoint are run again when it is resumed from; each must stand there once.
    """
    if not path.is_file():
        return
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def open_lines(path: Path) -> TextIO:
    """Open for appending; a last line that a killed writer left unfinished is ended first."""
    file = path.open("a+")
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read() != "\n":
            file.write("\n")
    return file


def _plain(value: float) -> float | None:
    """A number that JSON can hold; what is not finite becomes null."""
    number = float(value)
    return number if math.isfinite(number) else None


class RecordFiles:
    """``metrics.jsonl``, ``events.jsonl`` and ``images/`` of a run.

    Args:
        folder: of the run, made when absent.
        metrics_name: file of the metrics; None writes none.
        start_step: metrics of later steps are removed first.
    """

    def __init__(self, folder: Path, metrics_name: str | None, start_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._images = folder / "images"
        self._step = start_step
        self._metrics: TextIO | None = None
        if metrics_name is not None:
            drop_after(folder / metrics_name, start_step)
            self._metrics = (folder / metrics_name).open("a")
        self._events = open_lines(folder / "events.jsonl")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        if self._metrics is not None:
            values = {name: _plain(value) for name, value in metrics.items()}
            _append(self._metrics, {"step": step, "time": time.time(), **values})

    def event(self, message: str) -> None:
        _append(self._events, {"step": self._step, "time": time.time(), "event": message})

    def image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
        self._images.mkdir(exist_ok=True)
        notes = PngInfo()
        notes.add_itxt("caption", caption)
        image.save(self._images / f"{name}-{step:06d}.png", pnginfo=notes)

    def close(self) -> None:
        for file in (self._metrics, self._events):
            if file is not None:
                file.close()


def _append(file: TextIO, record: dict[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()
