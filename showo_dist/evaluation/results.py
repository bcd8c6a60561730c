"""Show a checkpoint's scores beside published ones, and the scorer's command where it did not run yet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from showo_dist.evaluation.job import write_json

# Name of a measure -> value in percent; the one called OVERALL is the benchmark's headline.
Scores = dict[str, float]
OVERALL = "overall"


@dataclass(frozen=True)
class Outcome:
    """Result of evaluating one checkpoint.

    Attributes:
        checkpoint: as the command line names it.
        out: its output folder.
        command: the scorer to run, in the scorer's own checkout; empty when it needs none.
        scores: read from the scorer's result file; empty until it ran.
    """

    checkpoint: str
    out: Path
    command: str = ""
    scores: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """A published overall score.

    Attributes:
        model: which one.
        framework: of the benchmark.
        value: percent.
        source: the publication.
    """

    model: str
    framework: str
    value: float
    source: str


_RECA = "RecA, arXiv 2509.07295"
_USER = "a user at default settings, RecA issue 18"
_WISE = "leaderboard of WISE, arXiv 2503.07265"
REFERENCES = (
    Reference("Show-o 256 CLIP", "geneval", 56.6, _RECA),
    Reference("Show-o 256 CLIP + RecA", "geneval", 61.9, _RECA),
    Reference("Show-o 512 CLIP", "geneval", 66.2, _RECA),
    Reference("Show-o 512 CLIP + RecA", "geneval", 72.3, _RECA),
    Reference("Show-o 512 CLIP + RecA", "geneval", 70.0, _USER),
    Reference("Show-o 256 CLIP", "dpg", 70.65, _RECA),
    Reference("Show-o 256 CLIP + RecA", "dpg", 75.70, _RECA),
    Reference("Show-o 512 CLIP", "dpg", 82.21, _RECA),
    Reference("Show-o 512 CLIP + RecA", "dpg", 84.94, _RECA),
    Reference("Show-o 256", "wise", 30.0, _WISE),
    Reference("Show-o 512", "wise", 35.0, _WISE),
)


def references(framework: str) -> list[Reference]:
    """Published results of one benchmark; empty where none is known."""
    return [reference for reference in REFERENCES if reference.framework == framework]


def conclude(framework: str, outcomes: Sequence[Outcome]) -> None:
    """Print the table and the commands, and write ``summary.json`` into every output folder."""
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
        values = [_percent(reference.value if name == OVERALL else None) for name in measures]
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
            {"model": r.model, "measure": OVERALL, "value": r.value, "source": r.source}
            for r in references(framework)
        ],
    }
