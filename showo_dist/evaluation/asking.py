"""Questions about images to answers, spread over the ranks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data.files import written_aside
from showo_data.images import decode
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.spread import Unit, batches, one_thread, spread

PARTS = "parts"  # folder of the answers, one file per batch
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        image: the image, its file, or the bytes of a file.
        text: as it is put to the model.
    """

    image: Image.Image | Path | bytes
    text: str

    def open(self) -> Image.Image:
        """The image as RGB, turned as its EXIF orientation says.

        Raises:
            ValueError: it cannot be read; the file is named.
        """
        if isinstance(self.image, Image.Image):
            return self.image
        try:
            image = self.image
            return decode(image.read_bytes() if isinstance(image, Path) else image)
        except Exception as error:  # Pillow's formats do not share an exception
            name = self.image if isinstance(self.image, Path) else f"image of {self.text!r}"
            raise ValueError(f"{name}: not an image that can be read ({error})") from error


def ask_spread(
    job: Job, questions: Sequence[Question], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """The most likely answer to every question, in their order, on every rank.

    The answers of one batch are one file in ``parts``; batches whose file is there are not asked again.

    Raises:
        ValueError, OSError, RuntimeError: see :func:`showo_dist.evaluation.spread.spread`.
    """
    parts = batches(questions, job.arguments.batch)
    units = [Unit(index, (job.out / PARTS / f"{index:06d}.json",)) for index in range(len(parts))]

    def make(unit: Unit) -> None:
        part = parts[unit.index]
        answers = job.pipeline.ask(
            [question.open() for question in part],
            [question.text for question in part],
            max_new_tokens=max_new_tokens,
            batch=len(part),
        )
        write_json(unit.files[0], answers)

    with one_thread(job.pipeline.device):
        spread(units, make, job.ranks, "asking")
    return [answer for unit in units for answer in json.loads(unit.files[0].read_text())]


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """A JSON file that appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file that appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as stream:
        stream.write(text.encode())
