"""What the understanding benchmarks share: the command line, the settings, the order of work."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showo_dist.evaluation.asking import PARTS, Question, ask_spread
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.record import inputs_digest
from showo_dist.evaluation.results import Outcome

BATCH = 32
# How LLaVA's instruction data asks for short answers: models trained on it answer in one word to this.
SHORT = "\nAnswer the question using a single word or phrase."

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One question of a benchmark.

    Attributes:
        image: file of the image, or its bytes.
        text: the question.
        record: what the answer file says about it beside the answer.
    """

    image: Path | bytes
    text: str
    record: Json


@dataclass(frozen=True)
class Benchmark:
    """The conventions of one scorer.

    Attributes:
        help: one line for the command line.
        questions_help: which file or folder holds the questions.
        suffix: what is appended to every question, unless the command line says otherwise.
        max_new_tokens: longest answer, likewise.
        read: (questions, folder of images) to the questions in order. Raises ValueError naming what is
            wrong where.
        write: (questions, answers, path of the questions, output folder) to the files written.
        owned: glob patterns of the files that ``write`` writes.
        scorer: (files written, path of the questions) to the command that scores them.
        images_help: what the folder of images holds; None when the questions hold their images.
    """

    help: str
    questions_help: str
    suffix: str
    max_new_tokens: int
    read: Callable[[Path, Path | None], list[Asked]]
    write: Callable[[list[Asked], list[str], Path, Path], list[Path]]
    owned: tuple[str, ...]
    scorer: Callable[[list[Path], Path], str]
    images_help: str | None = None


def add_arguments(benchmark: Benchmark, parser: argparse.ArgumentParser) -> None:
    """The options of an understanding benchmark."""
    parser.add_argument("--questions", type=Path, required=True, help=benchmark.questions_help)
    if benchmark.images_help is not None:
        parser.add_argument("--images", type=Path, required=True, help=benchmark.images_help)
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument(
        "--suffix", default=benchmark.suffix, help="appended to every question (%(default)r)"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=benchmark.max_new_tokens,
        help="longest answer (%(default)s)",
    )


def run(benchmark: Benchmark, job: Job) -> Outcome:
    """Ask what has no answer yet and write the scorer's files.

    Raises:
        ValueError, OSError: a question file or image cannot be read, the output folder holds something
            else, a rank failed.
    """
    arguments = job.arguments
    asked = benchmark.read(arguments.questions, getattr(arguments, "images", None))
    asked = asked[: arguments.limit]
    if not asked:
        raise ValueError(f"--questions {arguments.questions}: holds no questions")
    check_images(asked)
    questions = [Question(item.image, item.text + arguments.suffix) for item in asked]
    settings = {
        "batch": arguments.batch,
        "max_new_tokens": arguments.max_new_tokens,
        "suffix": arguments.suffix,
    }
    records = [
        [question.text, item.record] for question, item in zip(questions, asked, strict=True)
    ]
    job.claim({**settings, "inputs": inputs_digest(records)}, (PARTS, *benchmark.owned))
    answers = ask_spread(job, questions, arguments.max_new_tokens)
    command = ""
    if job.ranks.is_first:
        written = benchmark.write(asked, answers, arguments.questions, job.out.resolve())
        command = benchmark.scorer(written, arguments.questions.resolve())
    return Outcome(job.checkpoint, job.out, command)


def check_images(asked: list[Asked]) -> None:
    """Find missing images before the first question is asked.

    Raises:
        ValueError: some are missing; the first is named.
    """
    files = {item.image for item in asked if isinstance(item.image, Path)}
    missing = sorted(path for path in files if not path.is_file())
    if missing:
        raise ValueError(f"{missing[0]}: no such image ({len(missing)} of {len(files)} missing)")


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def one_line(answer: str) -> str:
    """The answer without line breaks and tabs."""
    return " ".join(answer.split())


def wrong_layout(path: Path, expected: str, error: Exception) -> ValueError:
    """A question file that is not laid out as its benchmark has it."""
    return ValueError(f"{path}: expected {expected} ({error!r})")
