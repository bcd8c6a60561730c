"""DPG-Bench (arXiv 2403.05135): one image per prompt, its four samples as a 2×2 grid."""

import csv
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from PIL import Image

from showo_data.text import is_apple_double, read_text
from showo_dist.evaluation.generating import ImageFile
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.results import OVERALL, Scores
from showo_dist.evaluation.text_to_image import (
    Chances,
    Prompt,
    TextToImage,
    check_count,
    keys,
    reca,
)

_COLUMNS = 2
_SCORE = re.compile(r"DPG-Bench score:\s*([\d.]+)")
_GROUP = re.compile(r"^\t(\w+): ([\d.]+)$")


def read_prompts(path: Path) -> list[Prompt]:
    """Read a folder with one ``NAME.txt`` per prompt, or ``dpg_bench.csv``.

    Raises:
        ValueError: it is neither; the message says what is missing.
    """
    texts: Mapping[str, str | None]
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if not is_apple_double(file))
        if not files:
            raise ValueError(f"{path}: holds no .txt files; expected one per prompt")
        texts = {file.stem: read_text(file) for file in files}
    elif path.suffix == ".csv":
        texts = _from_table(path)
    else:
        raise ValueError(f"{path}: expected a folder of .txt files, or dpg_bench.csv")
    return [_prompt(path, name, text) for name, text in texts.items()]


def _prompt(path: Path, name: str, text: str | None) -> Prompt:
    try:
        return Prompt(name, (text or "").strip(), {})
    except ValueError as error:
        raise ValueError(f"{path}: prompt {name!r}: {error}") from None


def _from_table(path: Path) -> dict[str, str | None]:
    """Prompts by ``item_id``; the table has a line for each question about an image."""
    rows = csv.DictReader(io.StringIO(read_text(path)))
    try:
        missing = {"item_id", "text"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"no column {' and no '.join(sorted(missing))}")
        return {row["item_id"]: row["text"] for row in rows}
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def image_files(index: int, prompt: Prompt, samples: int) -> list[ImageFile]:
    """One file with all samples."""
    path = f"images/{prompt.name}.png"
    return [ImageFile(path, prompt.text, tuple(keys(index, samples)))]


def grid(samples: Sequence[Image.Image]) -> Image.Image:
    """The samples row by row, two in a row, without gaps: the scorer cuts at multiples of their size."""
    width, height = samples[0].size
    rows = -(-len(samples) // _COLUMNS)
    sheet = Image.new("RGB", (width * min(_COLUMNS, len(samples)), height * rows))
    for number, sample in enumerate(samples):
        row, column = divmod(number, _COLUMNS)
        sheet.paste(sample, (column * width, row * height))
    return sheet


def scorer(job: Job, out: Path) -> str:
    """The command in a checkout of ELLA, which DPG-Bench is a part of."""
    options = {
        "--image-root-path": out / "images",
        "--resolution": job.pipeline.resolution,
        "--pic-num": job.arguments.samples,
        "--res-path": out / "results.txt",
    }
    words = [str(word) for option in options.items() for word in option]
    return shlex.join(["accelerate", "launch", "dpg_bench/compute_dpg_bench.py", *words])


def scores(out: Path, prompts: int, samples: int) -> Scores:
    """The overall score and the scores of the broad categories, from ``results.txt``.

    Raises:
        ValueError: the scorer did not finish, or left images out.
    """
    path = out / "results.txt"
    if not path.is_file():
        return {}
    text = read_text(path)
    score = _SCORE.search(text)
    if score is None:
        raise ValueError(f"{path}: no line 'DPG-Bench score: …'; the scorer has not finished")
    check_count(path, len(_rows(text)), prompts)
    broad, _, _ = text.partition("L2 category scores")
    groups = (_GROUP.match(line) for line in broad.splitlines())
    return {OVERALL: float(score[1]), **{m[1]: float(m[2]) for m in groups if m is not None}}


def chances(out: Path) -> Chances:
    """The score of the first sample of every prompt, of the second, and so on."""
    rows = _rows(read_text(out / "results.txt"))
    # A row is an image's path, the score of each of its samples, and their mean.
    numbers = (row.rpartition(".png, ")[2].split(", ")[:-1] for row in rows)
    samples = zip(*(map(float, row) for row in numbers), strict=True)
    return Chances("samples", [100 * fmean(scores) for scores in samples])


def _rows(text: str) -> list[str]:
    """The lines of a result file that are about one image."""
    return re.findall(r"^[^\t\n]*\.png, .*$", text, re.MULTILINE)


DPG = TextToImage(
    help="DPG-Bench's prompts to 2x2 grids",
    prompts_help="DPG-Bench's folder of prompts/*.txt, or its dpg_bench.csv",
    samples=4,
    most_samples=4,
    read=read_prompts,
    files=image_files,
    owned=("images", "results.txt"),
    scorer=scorer,
    scores=scores,
    compose=grid,
    presets=reca(4),
    chances=chances,
)
