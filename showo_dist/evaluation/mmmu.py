"""MMMU (arXiv 2311.16502): Parquet files with their images in, ``SUBJECT/output.json`` out."""

import ast
import re
import shlex
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from showo_data.convert.parquet import ParquetFiles
from showo_data.members import BadSampleError
from showo_data.text import plain_name
from showo_dist.evaluation.generating import Question
from showo_dist.evaluation.job import Json, write_json
from showo_dist.evaluation.understanding import SHORT, Understanding, one_line, wrong_layout

_COLUMNS = ("id", "question", "options", "answer", "question_type", "image_1")
_CHOICE = "multiple-choice"
# How LLaVA's instruction data asks questions with options.
_LETTER = "\nAnswer with the option's letter from the given choices directly."
_MARKER = re.compile(r"<image \d+>")


def read(path: Path, images: Path | None) -> list[Question]:
    """Read one Parquet file, or all ``SUBJECT/validation-*.parquet`` below a folder, as the release has them.

    A question with several images is asked about the first one.

    Raises:
        ValueError: no such file, a column is missing, or a row cannot be read.
    """
    files = sorted(path.rglob("validation-*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no validation-*.parquet below it")
    rows = ParquetFiles(_COLUMNS)
    questions = []
    for file, number in rows.places(map(str, files)):
        try:
            questions.append(_question(rows.row(file, number)))
        except (
            BadSampleError,
            AttributeError,
            KeyError,
            TypeError,
            SyntaxError,
            ValueError,
        ) as error:
            raise wrong_layout(Path(file), f"an MMMU question in row {number}", error) from None
    return questions


def _question(row: dict[str, Any]) -> Question:
    record: Json = {key: row[key] for key in ("id", "question_type", "answer")}
    _subject(record)
    text = _MARKER.sub("", row["question"]).strip()
    if row["question_type"] != _CHOICE:
        return Question(row["image_1"]["bytes"], text + SHORT, record)
    options = [_MARKER.sub("", str(option)).strip() for option in ast.literal_eval(row["options"])]
    choices = dict(zip(ascii_uppercase, options, strict=False))
    record |= {"all_choices": list(choices), "index2ans": choices}
    lines = "".join(f"\n{letter}. {option}" for letter, option in choices.items())
    return Question(row["image_1"]["bytes"], f"{text}{lines}{_LETTER}", record)


def _subject(record: Json) -> str:
    """The part ``Art_Theory`` of the id ``validation_Art_Theory_12``: the name of a folder."""
    return plain_name("_".join(record["id"].split("_")[1:-1]))


def write(asked: list[Question], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """Write a list per subject, as the scorer's ``main_parse_and_eval.py`` reads it."""
    subjects: dict[str, list[Json]] = {}
    for item, answer in zip(asked, answers, strict=True):
        record = {**item.record, "answer": _accepted(item.record), "response": one_line(answer)}
        subjects.setdefault(_subject(record), []).append(record)
    paths = []
    for subject, records in subjects.items():
        paths.append(out / "outputs" / subject / "output.json")
        write_json(paths[-1], records, indent=1)
    return paths


def _accepted(record: Json) -> str | list[str]:
    """The right answer; for an open question with several, which the release has as text, their list."""
    text: str = record["answer"]
    if record["question_type"] == _CHOICE or not text.startswith("["):
        return text
    try:
        answers = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    is_list = isinstance(answers, list) and all(isinstance(one, str) for one in answers)
    return answers if is_list else text


def scorer(written: list[Path], questions: Path) -> str:
    """The command in MMMU's folder ``eval``."""
    folder = str(written[0].parent.parent)
    return shlex.join(["python", "main_parse_and_eval.py", "--path", folder, "--subject", "ALL"])


MMMU = Understanding(
    help="MMMU's validation questions",
    questions_help="folder of the released SUBJECT/validation-*.parquet, or one such file",
    suffix="",  # it depends on the type of question and is already part of it
    max_new_tokens=32,
    read=read,
    write=write,
    owned=("outputs",),
    scorer=scorer,
)
