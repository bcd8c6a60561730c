"""VQAv2 (arXiv 1612.00837): the open-ended questions about COCO's images."""

import re
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
    """``v2_OpenEnded_mscoco_*_questions.json``: ``data_subtype`` and ``questions``.

    Raises:
        ValueError: a key is missing.
    """
    assert images is not None
    entries = read_json(path)
    try:
        prefix = f"COCO_{_image_set(entries['data_subtype'])}_"
        return [
            Asked(
                images / f"{prefix}{entry['image_id']:012d}.jpg",
                entry["question"],
                {"question_id": entry["question_id"]},
            )
            for entry in entries["questions"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        expected = "data_subtype, and questions with question_id, image_id and question"
        raise wrong_layout(path, expected, error) from None


def _image_set(subtype: str) -> str:
    """``test-dev2015`` asks about images of ``test2015``."""
    return re.sub(r"^test-[a-z]+", "test", subtype)


def write(asked: list[Asked], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """``question_id`` and ``answer``; the scorer takes care of case and punctuation."""
    subset = questions.stem.removesuffix("_questions").removeprefix("v2_")
    path = out / f"vqa_{subset}_results.json"
    results = [
        {**item.record, "answer": one_line(answer)}
        for item, answer in zip(asked, answers, strict=True)
    ]
    write_json(path, results)
    return [path]


def scorer(written: list[Path], questions: Path) -> str:
    """Validation answers are public; those of the test sets are with the challenge's server."""
    return f"python vqaEvalDemo.py  # VQA's: resFile = {written[0]}; test sets: upload it to EvalAI"


VQAV2 = Benchmark(
    help="VQAv2's open-ended questions",
    questions_help="a file such as v2_OpenEnded_mscoco_test-dev2015_questions.json",
    suffix=SHORT,
    max_new_tokens=16,
    read=read,
    write=write,
    owned=("vqa_*_results.json",),
    scorer=scorer,
    images_help="folder of COCO's images, COCO_test2015_000000000001.jpg",
)
