"""DPG-Bench's layout (arXiv 2403.05135): one image per prompt, its four samples as a 2×2 grid."""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from showo_dist.evaluation.generated.benchmark import Benchmark, Prompt, keys
from showo_dist.evaluation.generating import ImageFile
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.results import Scores, dpg_scores

_COLUMNS = 2


def read_prompts(path: Path) -> list[Prompt]:
    """A folder with one ``NAME.txt`` per prompt, or ``dpg_bench.csv``.

    Raises:
        ValueError: neither; what is missing is named.
    """
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise ValueError(f"{path}: holds no .txt files; expected one per prompt")
        texts = {file.stem: file.read_text(encoding="utf-8") for file in files}
    elif path.suffix == ".csv":
        texts = _from_table(path)
    else:
        raise ValueError(f"{path}: expected a folder of .txt files, or dpg_bench.csv")
    return [Prompt(name, text.strip(), {}) for name, text in texts.items()]


def _from_table(path: Path) -> dict[str, str]:
    """Prompts by ``item_id``; the table has a line for each question about an image."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"item_id", "text"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: no column {' and no '.join(sorted(missing))}")
        return {row["item_id"]: row["text"] for row in rows}


def image_files(index: int, prompt: Prompt, samples: int) -> list[ImageFile]:
    """One file with all samples."""
    path = f"images/{prompt.name}.png"
    return [ImageFile(path, prompt.text, tuple(keys(index, samples)))]


def grid(samples: Sequence[Image.Image]) -> Image.Image:
    """The samples row by row, two in a row, without a gap: the scorer cuts at multiples of their size."""
    width, height = samples[0].size
    rows = -(-len(samples) // _COLUMNS)
    sheet = Image.new("RGB", (width * min(_COLUMNS, len(samples)), height * rows))
    for number, sample in enumerate(samples):
        row, column = divmod(number, _COLUMNS)
        sheet.paste(sample, (column * width, row * height))
    return sheet


def scorer(job: Job, out: Path) -> str:
    """In a checkout of ELLA, which DPG-Bench is a part of."""
    options = {
        "--image-root-path": out / "images",
        "--resolution": job.pipeline.resolution,
        "--pic-num": job.arguments.samples,
        "--res-path": out / "results.txt",
    }
    words = [str(word) for option in options.items() for word in option]
    return shlex.join(["accelerate", "launch", "dpg_bench/compute_dpg_bench.py", *words])


def scores(out: Path, prompts: int, samples: int) -> Scores:
    """See :func:`showo_dist.evaluation.results.dpg_scores`."""
    return dpg_scores(out, prompts)


DPG = Benchmark(
    help="DPG-Bench's prompts to 2x2 grids",
    prompts_help="DPG-Bench's folder of prompts/*.txt, or its dpg_bench.csv",
    samples=4,
    most_samples=4,
    read=read_prompts,
    files=image_files,
    owned=("images",),
    scorer=scorer,
    scores=scores,
    compose=grid,
)
