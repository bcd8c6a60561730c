"""POPE (arXiv 2305.10355): is there an object in the image? JSON lines in, JSON lines out."""

import json
from pathlib import Path

from showo_dist.evaluation.answered.benchmark import SHORT, Asked, Benchmark, wrong_layout
from showo_dist.evaluation.asking import write_text


def read(path: Path, images: Path | None) -> list[Asked]:
    """Lines of ``coco_pope_*.json``: ``question_id``, ``image``, ``text``, ``label``.

    Raises:
        ValueError: a line lacks one of the first three.
    """
    assert images is not None
    asked = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            record = {"question_id": entry["question_id"], "question": entry["text"]}
            asked.append(Asked(images / entry["image"], entry["text"], record))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            what = f"an object with question_id, image and text in line {number}"
            raise wrong_layout(path, what, error) from None
    return asked


def write(asked: list[Asked], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """``question`` and ``answer`` per line, in the order of the question file: the scorer goes by order."""
    path = out / f"{questions.stem}_answers.json"
    lines = (
        json.dumps({**item.record, "answer": answer})
        for item, answer in zip(asked, answers, strict=True)
    )
    write_text(path, "".join(f"{line}\n" for line in lines))
    return [path]


def scorer(written: list[Path], questions: Path) -> str:
    """POPE's script has no options: the two paths are set in its first lines."""
    return f"python evaluate.py  # POPE's: ans_file = {written[0]}, label_file = {questions}"


POPE = Benchmark(
    help="POPE's yes-or-no questions",
    questions_help="a file such as coco_pope_random.json",
    suffix=SHORT,
    max_new_tokens=16,
    read=read,
    write=write,
    owned=("*_answers.json",),
    scorer=scorer,
    images_help="folder of COCO's val2014 images",
)
