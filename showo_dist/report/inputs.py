"""Read the files of finished runs, as far as they exist, and format their numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from showo_dist.logging.records import parse_lines, read_metrics

STAGES = {"pretrain": "pre-training", "reca": "RecA"}
TOKENIZER = "tokenizer"

Record = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Contents of an output folder of ``showo-dist evaluate --framework mini``."""

    folder: Path
    scores: Record
    images: list[Record] = field(default_factory=list)
    answers: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Runs:
    """Everything that a report shows.

    Attributes:
        root: folder of the runs.
        metrics: lines of ``metrics.jsonl`` of each run; empty where it is missing.
        evaluations: stage -> evaluation, those that exist.
    """

    root: Path
    metrics: dict[str, list[Record]]
    evaluations: dict[str, Evaluation]


def read_runs(root: Path) -> Runs:
    """Read the files that exist below ``root``.

    Raises:
        ValueError: no such folder, or a ``scores.json`` that cannot be read.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of runs")
    metrics = {name: read_metrics(metrics_path(root, name)) for name in (TOKENIZER, *STAGES)}
    found = {stage: _read_evaluation(evaluation_folder(root, stage)) for stage in STAGES}
    return Runs(root, metrics, {stage: e for stage, e in found.items() if e is not None})


def metrics_path(root: Path, name: str) -> Path:
    """Metrics file of the run ``name``."""
    return root / name / "metrics.jsonl"


def evaluation_folder(root: Path, stage: str) -> Path:
    """Folder with the evaluation of a stage."""
    return root / f"eval-{stage}"


def _read_evaluation(folder: Path) -> Evaluation | None:
    path = folder / "scores.json"
    if not path.is_file():
        return None
    try:
        scores = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    images, answers = (_read_lines(folder / f"{name}.jsonl") for name in ("images", "answers"))
    return Evaluation(folder, scores, images, answers)


def _read_lines(path: Path) -> list[Record]:
    return parse_lines(path.read_text()) if path.is_file() else []


def column(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, without the lines where it is absent or was not finite."""
    pairs = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def last(records: list[Record], key: str) -> float | None:
    """The last value of a metric; None when it was never measured."""
    values = column(records, key)[1]
    return values[-1] if values else None


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, from 100 on a whole number; a dash for None."""
    if value is None:
        return "–"
    shown = count(value) if abs(value) >= 100 else f"{value:.3g}"
    return f"{shown} {unit}".strip()


def count(value: float | None) -> str:
    """A whole number with separated thousands; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def mean(values: Sequence[float]) -> float | None:
    """The mean; None for an empty list."""
    return sum(values) / len(values) if values else None


def percent(value: float) -> str:
    """``90.0 %`` for 0.9."""
    return f"{100 * value:.1f} %"


def share(entry: Record | None) -> str:
    """``18/20 = 90.0 %``: correct ones of all; a dash for None or an empty tally."""
    if entry is None or not entry["total"]:
        return "–"
    return f"{entry['correct']}/{entry['total']} = {percent(entry['accuracy'])}"


def tally(entry: Record | None) -> str:
    """``18/20 = 90.0 % (69.9 to 97.2)``: the share with its 95 % interval."""
    if entry is None or not entry["total"]:
        return "–"
    return f"{share(entry)} ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"


def duration(seconds: float) -> str:
    """``2 min 05 s`` for 125 seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
