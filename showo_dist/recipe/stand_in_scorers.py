"""Stand-ins of the scorers of GenEval, DPG-Bench and WISE, for the miniature of a reproduction.

    python scorers.py geneval|dpg|wise FOLDER

A script of its own, as scorers are: it is copied beside the other stand-ins and imports nothing of this
project. It reads the images and writes result files in the scorers' formats. **Its verdicts mean nothing**:
an image is correct when its upper half is brighter than its lower half.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageStat

COLUMNS = 2  # of the samples in a grid of DPG-Bench


def brighter_above(image: Image.Image) -> bool:
    """The verdict on an image."""
    grey = image.convert("L")
    half = grey.height // 2
    boxes = (0, 0, grey.width, half), (0, half, grey.width, 2 * half)
    above, below = (ImageStat.Stat(grey.crop(box)).sum[0] for box in boxes)
    return above > below


def geneval(out: Path) -> None:
    """Write ``results.jsonl``: a line per image."""
    lines = []
    for path in sorted(out.glob("[0-9]*/samples/*.png")):
        metadata = json.loads((path.parent.parent / "metadata.jsonl").read_text())
        correct = brighter_above(Image.open(path))
        record = {"filename": shown(path), "tag": metadata["tag"], "prompt": metadata["prompt"]}
        lines.append(json.dumps({**record, "correct": correct, "reason": "stand-in"}))
    (out / "results.jsonl").write_text("\n".join([*lines, ""]))


def dpg(out: Path) -> None:
    """Write ``results.txt``: a line per grid with the score of each sample, then the scores of all."""
    lines, means = [], []
    for path in sorted((out / "images").glob("*.png")):
        grid = Image.open(path)
        side = grid.width // COLUMNS
        corners = [(x, y) for y in range(0, grid.height, side) for x in range(0, grid.width, side)]
        scores = [float(brighter_above(grid.crop((x, y, x + side, y + side)))) for x, y in corners]
        means.append(sum(scores) / len(scores))
        lines.append(", ".join([shown(path), *map(str, scores), str(means[-1])]))
    score = 100 * sum(means) / len(means)
    lines += ["Model: images", "L1 category scores:", f"\tstandin: {score}", "L2 category scores:"]
    lines += [f"\tstandin: {score}", f"DPG-Bench score: {score}", ""]
    (out / "results.txt").write_text("\n".join(lines))


def wise(out: Path) -> None:
    """Write ``results/stand-in_scores.jsonl``: three marks of 0, 1 or 2 per image."""
    lines = []
    for path in sorted((out / "images").glob("*.png"), key=lambda path: int(path.stem)):
        image = Image.open(path)
        marks = {
            "consistency": 2 * brighter_above(image),
            "realism": 2 * brighter_above(image.rotate(90)),
            "aesthetic_quality": 1,
        }
        lines.append(json.dumps({"prompt_id": int(path.stem), "Subcategory": "stand-in", **marks}))
    (out / "results").mkdir(exist_ok=True)
    (out / "results" / "stand-in_scores.jsonl").write_text("\n".join([*lines, ""]))


def shown(path: Path) -> str:
    """The path from the folder that the scorer was started in, so that it is the same everywhere."""
    return str(path.relative_to(Path.cwd()))


SCORERS: dict[str, Callable[[Path], None]] = {"geneval": geneval, "dpg": dpg, "wise": wise}

if __name__ == "__main__":
    SCORERS[sys.argv[1]](Path(sys.argv[2]))
