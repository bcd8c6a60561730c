"""One's own values beside the published ones, and the command that is still to be run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from showo_dist.evaluation.asking import write_json
from showo_dist.evaluation.references import references
from showo_dist.evaluation.results import OVERALL, Scores


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
