"""GQA (arXiv 1902.09506): questions by id in, predictions by id out."""

import shlex
from pathlib import Path

from showo_dist.evaluation.answered.benchmark import (
    SHORT,
    Asked,
    Benchmark,
    one_line,
    read_json,
    wrong_layout,
)
from showo_dist.evaluation.asking import write_json


def read(path: Path, images: Path | None) -> list[Asked]:
    """``testdev_balanced_questions.json``: question id to ``question`` and ``imageId``.

    Raises:
        ValueError: an entry lacks one of them.
    """
    assert images is not None
    entries = read_json(path)
    try:
        return [
            Asked(images / f"{entry['imageId']}.jpg", entry["question"], {"questionId": name})
            for name, entry in entries.items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise wrong_layout(path, "ids of questions with question and imageId", error) from None


def write(asked: list[Asked], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """``questionId`` and ``prediction``, lower case without a stop: the scorer compares letter by letter."""
    path = out / f"{questions.stem.removesuffix('_questions')}_predictions.json"
    predictions = [
        {**item.record, "prediction": one_line(answer).rstrip(".").lower()}
        for item, answer in zip(asked, answers, strict=True)
    ]
    write_json(path, predictions)
    return [path]


def scorer(written: list[Path], questions: Path) -> str:
    """With GQA's own script."""
    tier = questions.stem.removesuffix("_questions")
    files = ["--questions", str(questions), "--predictions", str(written[0])]
    return shlex.join(["python", "eval.py", "--tier", tier, *files])


GQA = Benchmark(
    help="GQA's questions",
    questions_help="a file such as testdev_balanced_questions.json",
    suffix=SHORT,
    max_new_tokens=16,
    read=read,
    write=write,
    owned=("*_predictions.json",),
    scorer=scorer,
    images_help="folder of GQA's images, IMAGE_ID.jpg",
)
