"""Common parts of the understanding benchmarks: command line, settings, order of the work."""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data.text import parse_json, read_text
from showo_dist.evaluation.generating import PARTS, Question, answer_questions
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.results import Outcome

# How LLaVA's instruction data asks for short answers: models trained on it answer in one word to this.
SHORT = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Understanding:
    """A benchmark whose scorer reads answers to questions about images.

    Attributes:
        help: one line for the command line.
        questions_help: which file or folder holds the questions.
        suffix: default text that is appended to every question.
        max_new_tokens: default length of the longest answer, in tokens.
        read: (questions, folder of images) -> the questions in order. Raises ValueError naming the faulty
            place.
        write: (questions, answers, path of the questions, output folder) -> the files written.
        owned: glob patterns of the files that ``write`` writes.
        scorer: (files written, path of the questions) -> the command that scores them.
        images_help: contents of the folder of images; None when the question file holds the images.
    """

    help: str
    questions_help: str
    suffix: str
    max_new_tokens: int
    read: Callable[[Path, Path | None], list[Question]]
    write: Callable[[list[Question], list[str], Path, Path], list[Path]]
    owned: tuple[str, ...]
    scorer: Callable[[list[Path], Path], str]
    images_help: str | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options that all of these benchmarks have."""
        parser.add_argument("--questions", type=Path, required=True, help=self.questions_help)
        if self.images_help is not None:
            parser.add_argument("--images", type=Path, required=True, help=self.images_help)
        parser.add_argument("--limit", type=int, help="only the first so many questions")
        parser.add_argument(
            "--suffix", default=self.suffix, help="appended to every question (%(default)r)"
        )
        parser.add_argument(
            "--max-new-tokens",
            type=int,
            default=self.max_new_tokens,
            help="longest answer (%(default)s)",
        )

    def run(self, job: Job) -> Outcome:
        """Ask the questions that have no answer yet and write the scorer's files.

        Raises:
            ValueError, OSError: a question file or image cannot be read, the output folder holds another
                evaluation, or a rank failed.
        """
        arguments = job.arguments
        questions = self.read(arguments.questions, getattr(arguments, "images", None))
        questions = [
            replace(question, text=question.text + arguments.suffix)
            for question in questions[: arguments.limit]
        ]
        if not questions:
            raise ValueError(f"--questions {arguments.questions}: holds no questions")
        check_images(questions)
        settings = {
            "batch": arguments.batch,
            "max_new_tokens": arguments.max_new_tokens,
            "suffix": arguments.suffix,
        }
        inputs = [[q.text, q.record, _identity(q.image)] for q in questions]
        job.claim(settings, inputs, (PARTS, *self.owned))
        answers = answer_questions(job, questions, arguments.max_new_tokens)
        command = ""
        if job.ranks.is_first:
            written = self.write(questions, answers, arguments.questions, job.out.resolve())
            command = self.scorer(written, arguments.questions.resolve())
        return Outcome(job.checkpoint, job.out, command)


def _identity(image: Image.Image | Path | bytes) -> list[object]:
    """What tells an image from another without reading all files: name and size, or a digest."""
    if isinstance(image, Path):
        return [image.name, image.stat().st_size]
    data = image if isinstance(image, bytes) else image.tobytes()
    return [hashlib.sha256(data).hexdigest()]


def check_images(questions: list[Question]) -> None:
    """Look for missing images before the first question is asked.

    Raises:
        ValueError: some are missing; the first is named.
    """
    files = {question.image for question in questions if isinstance(question.image, Path)}
    missing = sorted(path for path in files if not path.is_file())
    if missing:
        raise ValueError(f"{missing[0]}: no such image ({len(missing)} of {len(files)} missing)")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is not UTF-8, or not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def one_line(answer: str) -> str:
    """The answer without line breaks and tabs."""
    return " ".join(answer.split())


def wrong_layout(path: Path, expected: str, error: Exception) -> ValueError:
    """The error for a question file that does not have its benchmark's layout."""
    return ValueError(f"{path}: expected {expected} ({error!r})")
