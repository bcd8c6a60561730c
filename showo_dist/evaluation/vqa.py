"""Visual question answering benchmarks with short answers: POPE, MME, GQA, VQAv2.

Each reads its published question files and writes the answer files that its own scorer reads.
"""

import json
import re
import shlex
from pathlib import Path

from showo_data.text import inside, is_apple_double, parse_json, read_lines
from showo_dist.evaluation.generating import Question
from showo_dist.evaluation.job import write_json, write_text
from showo_dist.evaluation.understanding import (
    SHORT,
    Understanding,
    one_line,
    read_json,
    wrong_layout,
)

# POPE (arXiv 2305.10355): is there an object in the image? JSON lines in, JSON lines out.


def read_pope(path: Path, images: Path | None) -> list[Question]:
    """Read lines of ``coco_pope_*.json``: ``question_id``, ``image``, ``text``, ``label``.

    Raises:
        ValueError: a line lacks one of the first three.
    """
    assert images is not None
    questions = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry = parse_json(line)
            record = {"question_id": entry["question_id"], "question": entry["text"]}
            questions.append(Question(inside(images, entry["image"]), entry["text"], record))
        except (ValueError, KeyError, TypeError) as error:
            what = f"an object with question_id, image and text in line {number}"
            raise wrong_layout(path, what, error) from None
    return questions


def write_pope(asked: list[Question], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """Write ``question`` and ``answer`` per line; the scorer matches them with the questions by order."""
    path = out / f"{questions.stem}_answers.json"
    lines = (
        json.dumps({**item.record, "answer": answer})
        for item, answer in zip(asked, answers, strict=True)
    )
    write_text(path, "".join(f"{line}\n" for line in lines))
    return [path]


def score_pope(written: list[Path], questions: Path) -> str:
    """POPE's script has no options: the two paths are set in its first lines."""
    return f"python evaluate.py  # POPE's: ans_file = {written[0]}, label_file = {questions}"


POPE = Understanding(
    help="POPE's yes-or-no questions",
    questions_help="a file such as coco_pope_random.json",
    suffix=SHORT,
    max_new_tokens=16,
    read=read_pope,
    write=write_pope,
    owned=("*_answers.json",),
    scorer=score_pope,
    images_help="folder of COCO's val2014 images",
)

# MME (arXiv 2306.13394): a text file per task; the model's answer becomes the fourth column.

_MME_COLUMNS = 3  # image, question, true answer


def read_mme(path: Path, images: Path | None) -> list[Question]:
    """Read all ``TASK.txt`` of a folder: image, question and true answer, separated by tabs.

    Raises:
        ValueError: no such file, or a line without three columns.
    """
    assert images is not None
    files = sorted(file for file in path.glob("*.txt") if not is_apple_double(file))
    if not files:
        raise ValueError(f"{path}: holds no .txt files; expected one per task (MME's Your_Results)")
    return [question for file in files for question in _read_mme_task(file, images)]


def _read_mme_task(path: Path, images: Path) -> list[Question]:
    questions = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) != _MME_COLUMNS:
            expected = f"image, question and answer in line {number}"
            raise wrong_layout(path, expected, ValueError(f"{len(columns)} columns"))
        try:
            # The release keeps the images of some tasks in a folder `images` of their own.
            image = inside(images / path.stem / "images", columns[0])
            if not image.is_file():
                image = images / path.stem / columns[0]
            questions.append(Question(image, columns[1], {"task": path.stem, "line": line}))
        except ValueError as error:
            raise wrong_layout(path, f"a question in line {number}", error) from None
    return questions


def write_mme(asked: list[Question], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """Write the task files with the answer appended to each line; an image has two lines, kept in order."""
    tasks: dict[str, list[str]] = {}
    for item, answer in zip(asked, answers, strict=True):
        lines = tasks.setdefault(item.record["task"], [])
        lines.append(f"{item.record['line']}\t{one_line(answer)}\n")
    paths = [out / "results" / f"{task}.txt" for task in tasks]
    for path, lines in zip(paths, tasks.values(), strict=True):
        write_text(path, "".join(lines))
    return paths


def score_mme(written: list[Path], questions: Path) -> str:
    """The command in MME's ``eval_tool``."""
    return shlex.join(["python", "calculation.py", "--results_dir", str(written[0].parent)])


MME = Understanding(
    help="MME's yes-or-no questions, task by task",
    questions_help="MME's folder of task files (eval_tool/Your_Results)",
    suffix="",  # its questions ask for yes or no themselves
    max_new_tokens=16,
    read=read_mme,
    write=write_mme,
    owned=("results",),
    scorer=score_mme,
    images_help="MME_Benchmark_release_version: a folder per task",
)

# GQA (arXiv 1902.09506): questions by id in, predictions by id out.


def read_gqa(path: Path, images: Path | None) -> list[Question]:
    """Read ``testdev_balanced_questions.json``: question id -> ``question`` and ``imageId``.

    Raises:
        ValueError: an entry lacks one of them.
    """
    assert images is not None
    entries = read_json(path)
    try:
        return [
            Question(
                inside(images, f"{entry['imageId']}.jpg"), entry["question"], {"questionId": name}
            )
            for name, entry in entries.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise wrong_layout(path, "ids of questions with question and imageId", error) from None


def write_gqa(asked: list[Question], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """Write ``questionId`` and ``prediction``; lower case, no full stop: the scorer compares strings."""
    path = out / f"{_gqa_tier(questions)}_predictions.json"
    predictions = [
        {**item.record, "prediction": one_line(answer).rstrip(".").lower()}
        for item, answer in zip(asked, answers, strict=True)
    ]
    write_json(path, predictions)
    return [path]


def score_gqa(written: list[Path], questions: Path) -> str:
    """The command for GQA's own script."""
    files = ["--questions", str(questions), "--predictions", str(written[0])]
    return shlex.join(["python", "eval.py", "--tier", _gqa_tier(questions), *files])


def _gqa_tier(questions: Path) -> str:
    return questions.stem.removesuffix("_questions")


GQA = Understanding(
    help="GQA's questions",
    questions_help="a file such as testdev_balanced_questions.json",
    suffix=SHORT,
    max_new_tokens=16,
    read=read_gqa,
    write=write_gqa,
    owned=("*_predictions.json",),
    scorer=score_gqa,
    images_help="folder of GQA's images, IMAGE_ID.jpg",
)

# VQAv2 (arXiv 1612.00837): open-ended questions about COCO's images.


def read_vqav2(path: Path, images: Path | None) -> list[Question]:
    """Read ``v2_OpenEnded_mscoco_*_questions.json``: ``data_subtype`` and ``questions``.

    Raises:
        ValueError: a key is missing.
    """
    assert images is not None
    entries = read_json(path)
    try:
        # `test-dev2015` asks about images of `test2015`.
        prefix = f"COCO_{re.sub(r'^test-[a-z]+', 'test', entries['data_subtype'])}_"
        return [
            Question(
                inside(images, f"{prefix}{entry['image_id']:012d}.jpg"),
                entry["question"],
                {"question_id": entry["question_id"]},
            )
            for entry in entries["questions"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        expected = "data_subtype, and questions with question_id, image_id and question"
        raise wrong_layout(path, expected, error) from None


def write_vqav2(
    asked: list[Question], answers: list[str], questions: Path, out: Path
) -> list[Path]:
    """Write ``question_id`` and ``answer``; the scorer normalises case and punctuation."""
    subset = questions.stem.removesuffix("_questions").removeprefix("v2_")
    path = out / f"vqa_{subset}_results.json"
    results = [
        {**item.record, "answer": one_line(answer)}
        for item, answer in zip(asked, answers, strict=True)
    ]
    write_json(path, results)
    return [path]


def score_vqav2(written: list[Path], questions: Path) -> str:
    """Validation answers are public; the answers of the test sets are on the challenge's server."""
    return f"python vqaEvalDemo.py  # VQA's: resFile = {written[0]}; test sets: upload it to EvalAI"


VQAV2 = Understanding(
    help="VQAv2's open-ended questions",
    questions_help="a file such as v2_OpenEnded_mscoco_test-dev2015_questions.json",
    suffix=SHORT,
    max_new_tokens=16,
    read=read_vqav2,
    write=write_vqav2,
    owned=("vqa_*_results.json",),
    scorer=score_vqav2,
    images_help="folder of COCO's images, COCO_test2015_000000000001.jpg",
)
