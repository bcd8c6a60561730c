"""The files of a run's log: JSON lines that are flushed at once, and images."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from showo_data.files import written_aside


def parse_lines(text: str) -> list[dict[str, Any]]:
    """Parse JSON lines; a line that a killed writer left incomplete is skipped."""
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
    """The records of a ``metrics.jsonl``; empty if the file does not exist."""
    return parse_lines(path.read_text()) if path.is_file() else []


def drop_after(path: Path, step: int) -> None:
    """Remove the lines of later steps, and an incomplete line; the file is replaced in one rename.

    A run that resumes repeats the steps after its checkpoint, and each step must be in the file once.
    """
    if not path.is_file():
        return
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    with written_aside(path) as file:
        file.writelines(json.dumps(record).encode() + b"\n" for record in kept)


def open_lines(path: Path) -> TextIO:
    """Open for appending; a last line that a killed writer left incomplete is terminated first."""
    file = path.open("a+")
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read() != "\n":
            file.write("\n")
    return file


def _plain(value: float) -> float | None:
    """A number for JSON; NaN and infinities become null."""
    number = float(value)
    return number if math.isfinite(number) else None


class RecordFiles:
    """Writes ``metrics.jsonl``, ``events.jsonl`` and ``images/`` of a run.

    Args:
        folder: of the run, created if absent.
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
    try:
        file.write(json.dumps(record) + "\n")
        file.flush()
    except OSError as error:
        error.filename = file.name
        raise
