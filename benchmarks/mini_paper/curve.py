"""The loss curve of the quick pre-training, held to the spread that was measured over seeds.

``curve.json`` holds the held-out losses of several trainings that differ in their seed, as measured by
``benchmarks/mini_paper.py --measure N``.
"""

import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, variance

from showo_dist.logging.records import read_metrics
from showo_dist.report.inputs import column

FILE = Path(__file__).with_name("curve.json")
KEYS = ("validation/t2i", "validation/mmu")
# Standard deviations of a difference between a new run and the mean. The spread is pooled over all steps.
LIMIT = 4.0


def read(run: Path) -> dict[str, dict[str, float]]:
    """Held-out losses of a run, by metric and step."""
    lines = read_metrics(run / "metrics.jsonl")
    columns = {key: column(lines, key) for key in KEYS}
    return {k: {str(s): v for s, v in zip(*pair, strict=True)} for k, pair in columns.items()}


def references() -> list[dict[str, dict[str, float]]]:
    """The recorded curves.

    Raises:
        ValueError: there are none.
    """
    if not FILE.is_file():
        raise ValueError(f"{FILE}: the curves are not measured; run mini_paper.py --measure 3")
    return json.loads(FILE.read_text())


def measure(runs: Sequence[Path]) -> None:
    """Write the curves of ``runs`` to ``FILE``."""
    FILE.write_text(json.dumps([read(run) for run in runs], indent=1) + "\n")


def spread(curves: Sequence[dict[str, float]]) -> float:
    """Relative standard deviation of the losses at one step over runs, pooled over the steps."""
    of_steps = [[curve[step] for curve in curves] for step in curves[0]]
    return sqrt(fmean(variance(values) / fmean(values) ** 2 for values in of_steps))


def check(run: Path, references: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """One line for each loss of a run that is further from the references' mean than their spread allows."""
    found, wrong = read(run), []
    for key in KEYS:
        curves = [reference[key] for reference in references]
        tolerance = LIMIT * spread(curves) * sqrt(1 + 1 / len(curves))
        for step in curves[0]:
            expected, loss = fmean(curve[step] for curve in curves), found[key].get(step)
            if loss is None:
                wrong.append(f"{key} at step {step}: missing")
            elif abs(loss - expected) > tolerance * expected:
                wrong.append(
                    f"{key} at step {step}: {loss:.3f}, expected {expected:.3f} ± {tolerance * expected:.3f}"
                )
    return wrong
