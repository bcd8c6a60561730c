"""MME (arXiv 2306.13394): a text file per task, the model's answer as a fourth column."""

import shlex
from pathlib import Path

from showo_dist.evaluation.answered.benchmark import Asked, Benchmark, one_line, wrong_layout
from showo_dist.evaluation.asking import write_text

_COLUMNS = 3  # image, question, true answer


def read(path: Path, images: Path | None) -> list[Asked]:
    """All ``TASK.txt`` of a folder: image, question and true answer, tabs between them.

    Raises:
        ValueError: no such file, or a line without three columns.
    """
    assert images is not None
    files = sorted(path.glob("*.txt"))
    if not files:
        raise ValueError(f"{path}: holds no .txt files; expected one per task (MME's Your_Results)")
    return [asked for file in files for asked in _read_task(file, images)]


def _read_task(path: Path, images: Path) -> list[Asked]:
    asked = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split("\t")
        if len(columns) != _COLUMNS:
            error = ValueError(f"{len(columns)} columns")
            raise wrong_layout(
                path, f"image, question and answer in line {number}", error
            ) from None
        image = _image(images / path.stem, columns[0])
        asked.append(Asked(image, columns[1], {"task": path.stem, "line": line}))
    return asked


def _image(folder: Path, name: str) -> Path:
    """The release keeps the images of some tasks in a folder ``images`` of their own."""
    inside = folder / "images" / name
    return inside if inside.is_file() else folder / name


def write(asked: list[Asked], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """The task files again, each line with the answer behind it; two lines belong to an image, in order."""
    tasks: dict[str, list[str]] = {}
    for item, answer in zip(asked, answers, strict=True):
        lines = tasks.setdefault(item.record["task"], [])
        lines.append(f"{item.record['line']}\t{one_line(answer)}\n")
    paths = []
    for task, lines in tasks.items():
        paths.append(out / "results" / f"{task}.txt")
        write_text(paths[-1], "".join(lines))
    return paths


def scorer(written: list[Path], questions: Path) -> str:
    """In MME's ``eval_tool``."""
    return shlex.join(["python", "calculation.py", "--results_dir", str(written[0].parent)])


MME = Benchmark(
    help="MME's yes-or-no questions, task by task",
    questions_help="MME's folder of task files (eval_tool/Your_Results)",
    suffix="",  # its questions ask for yes or no themselves
    max_new_tokens=16,
    read=read,
    write=write,
    owned=("results",),
    scorer=scorer,
    images_help="MME_Benchmark_release_version: a folder per task",
)
