"""What the benchmarks' own scorers found, read from the files that they write.

Published values, to set beside one's own.

One's own values beside the published ones, and the command that is still to be run."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from showo_dist.evaluation.asking import write_json
from showo_dist.evaluation.record import RECORD_NAME

# Name of a measure -> value in percent; the one called OVERALL is the benchmark's headline.
Scores = dict[str, float]
OVERALL = "overall"

# WISE (its README): the weights of an image's three marks, each 0, 1 or 2.
_WISE_WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
_WISE_BEST = 2
_DPG_SCORE = re.compile(r"DPG-Bench score:\s*([\d.]+)")
_DPG_GROUP = re.compile(r"^\t(\w+): ([\d.]+)$")


def geneval_scores(out: Path, images: int) -> Scores:
    """Shares of right images per category and their mean, from ``results.jsonl``; empty without that file.

    Raises:
        ValueError: the file does not hold verdicts on all images.
    """
    path = out / "results.jsonl"
    if not path.is_file():
        return {}
    tags: dict[str, list[bool]] = {}
    for record in _json_lines(path):
        tags.setdefault(record["tag"], []).append(bool(record["correct"]))
    _check_count(path, sum(map(len, tags.values())), images)
    shares = {tag: 100 * fmean(verdicts) for tag, verdicts in tags.items()}
    return {OVERALL: fmean(shares.values()), **shares}


def dpg_scores(out: Path, prompts: int) -> Scores:
    """The score and those of the broad categories, from ``results.txt``; empty without that file.

    Raises:
        ValueError: the scorer did not come to its end, or left images out.
    """
    path = out / "results.txt"
    if not path.is_file():
        return {}
    text = path.read_text()
    score = _DPG_SCORE.search(text)
    if score is None:
        raise ValueError(f"{path}: no line 'DPG-Bench score: …'; the scorer has not finished")
    _check_count(path, len(re.findall(r"^[^\t\n]*\.png, ", text, re.MULTILINE)), prompts)
    broad, _, _ = text.partition("L2 category scores")
    groups = (_DPG_GROUP.match(line) for line in broad.splitlines())
    return {OVERALL: float(score[1]), **{m[1]: float(m[2]) for m in groups if m is not None}}


def wise_scores(out: Path, prompts: int) -> Scores:
    """WiScore over all prompts, from ``results/*_scores.jsonl``; empty without such files.

    Its published overall weighs each category by its number of prompts, so that it is the plain mean.

    Raises:
        ValueError: not all prompts were judged.
    """
    marks: dict[int, dict[str, Any]] = {}
    paths = sorted((out / "results").glob("*_scores.jsonl"))
    for path in paths:
        marks |= {record["prompt_id"]: record for record in _json_lines(path)}
    judged = [record for record in marks.values() if _is_judged(record)]
    if not paths:
        return {}
    _check_count(paths[0].parent, len(judged), prompts)
    scores = (
        sum(weight * record[name] for name, weight in _WISE_WEIGHTS.items()) for record in judged
    )
    return {OVERALL: 100 * fmean(scores) / _WISE_BEST}


def _is_judged(record: dict[str, Any]) -> bool:
    """The scorer writes a number far out of range when its judge gave no marks."""
    return all(record[name] <= _WISE_BEST for name in _WISE_WEIGHTS)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON lines ({error})") from None


def _check_count(path: Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(
            f"{path}: holds verdicts on {found} of {wanted} images; run the scorer again "
            f"(what was generated is in {RECORD_NAME} beside it)"
        )


_RECA = "RecA, arXiv 2509.07295"
_WISE = "leaderboard of WISE, arXiv 2503.07265"


@dataclass(frozen=True)
class Reference:
    """A published result.

    Attributes:
        model: which one.
        framework: of the benchmark.
        measure: which of its measures.
        value: percent.
        source: who published it.
    """

    model: str
    framework: str
    measure: str
    value: float
    source: str


REFERENCES = (
    Reference("Show-o 256 CLIP", "geneval", OVERALL, 56.6, _RECA),
    Reference("Show-o 256 CLIP + RecA", "geneval", OVERALL, 61.9, _RECA),
    Reference("Show-o 512 CLIP", "geneval", OVERALL, 66.2, _RECA),
    Reference("Show-o 512 CLIP + RecA", "geneval", OVERALL, 72.3, _RECA),
    Reference("Show-o 256 CLIP", "dpg", OVERALL, 70.65, _RECA),
    Reference("Show-o 256 CLIP + RecA", "dpg", OVERALL, 75.70, _RECA),
    Reference("Show-o 512 CLIP", "dpg", OVERALL, 82.21, _RECA),
    Reference("Show-o 512 CLIP + RecA", "dpg", OVERALL, 84.94, _RECA),
    Reference("Show-o 256", "wise", OVERALL, 30.0, _WISE),
    Reference("Show-o 512", "wise", OVERALL, 35.0, _WISE),
)


def references(framework: str) -> list[Reference]:
    """The published results of one benchmark; none where none is known."""
    return [reference for reference in REFERENCES if reference.framework == framework]


@dataclass(frozen=True)
class Outcome:
    """What came of one checkpoint.

    Attributes:
        checkpoint: as the command line has it.
        out: its output folder.
        command: the scorer to run, in the scorer's own checkout; empty when it needs none.
        scores: what the scorer found; empty until it ran.
    """

    checkpoint: str
    out: Path
    command: str = ""
    scores: Scores = field(default_factory=dict)


def conclude(framework: str, outcomes: Sequence[Outcome]) -> None:
    """Print the table and the commands, and leave ``summary.json`` in every output folder."""
    console = Console(soft_wrap=True)
    if any(outcome.scores for outcome in outcomes) or references(framework):
        console.print(table(framework, outcomes))
    for outcome in outcomes:
        write_json(outcome.out / "summary.json", to_json(framework, outcome), indent=2)
        if outcome.command and not outcome.scores:
            console.print(f"{outcome.out}: ready to be scored:")
            console.print(f"    {outcome.command}", markup=False, highlight=False)


def table(framework: str, outcomes: Sequence[Outcome]) -> Table:
    """A row per model, a column per measure; a dash where nothing was measured."""
    measures = list(dict.fromkeys(name for outcome in outcomes for name in outcome.scores))
    measures = measures or [OVERALL]
    shown = Table(title=f"{framework}, percent", title_justify="left")
    for heading in ("", *measures, "source"):
        shown.add_column(heading, justify="right" if heading in measures else "left")
    for outcome in outcomes:
        values = [_percent(outcome.scores.get(name)) for name in measures]
        shown.add_row(outcome.checkpoint, *values, "here")
    for reference in references(framework):
        values = [_percent(reference.value if reference.measure == m else None) for m in measures]
        shown.add_row(reference.model, *values, reference.source)
    return shown


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def to_json(framework: str, outcome: Outcome) -> dict[str, object]:
    """The same as a JSON object."""
    return {
        "framework": framework,
        "checkpoint": outcome.checkpoint,
        "scores": outcome.scores or None,
        "scorer": outcome.command or None,
        "published": [
            {"model": r.model, "measure": r.measure, "value": r.value, "source": r.source}
            for r in references(framework)
        ],
    }
