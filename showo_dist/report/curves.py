"""Curves of metrics as PNG files."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from showo_dist.report.inputs import Record, column

_DPI = 130
_SMOOTHED = 25  # lines from which a running mean is drawn over the raw values
# Colours of Okabe and Ito, which people with any colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_curves(lines: list[Record], keys: list[str], y_label: str, path: Path) -> list[str]:
    """One curve per metric of a run.

    Args:
        lines: of its ``metrics.jsonl``.
        keys: metrics to draw; those that no line holds are left out.
        y_label: what the values are, with the unit.
        path: PNG to write.

    Returns:
        The metrics that were drawn; nothing is written when there is none.
    """
    drawn = [key for key in keys if column(lines, key)[0]]
    if not drawn:
        return []
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for key in drawn:
        label = key.removeprefix("loss/").replace("_", " ")
        _draw_line(axes, *column(lines, key), label, _COLOURS[keys.index(key) % len(_COLOURS)])
    axes.set(xlabel="optimizer step", ylabel=y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return drawn


def _draw_line(axes: Axes, steps: list[int], values: list[float], label: str, colour: str) -> None:
    if len(steps) < _SMOOTHED:
        axes.plot(steps, values, color=colour, label=label)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, running_mean(values), color=colour, label=label)


def running_mean(values: list[float], share: float = 0.04) -> list[float]:
    """Each value averaged with its neighbours, ``share`` of the curve wide."""
    reach = max(1, round(len(values) * share / 2))
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
