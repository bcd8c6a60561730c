"""Draw curves of metrics: as PNG files, and as SVG that follows the page's colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from showo_dist.config.flows import FLOWS
from showo_dist.report.inputs import Record, column, count, number

LOSSES = ("loss", *(f"loss/{flow}" for flow in FLOWS))
# In the order of LOSSES, so that a held-out loss has the colour of the training loss of its flow.
HELD_OUT = ("validation/loss", *(f"validation/{flow}" for flow in FLOWS))

# Colours of Okabe and Ito, which people with any colour vision can distinguish; page.css has their like.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PANEL_INCHES = (5.6, 3.2)
_DPI = 130
_SMOOTHED = 25  # points from which a running mean is drawn over the raw values

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 10, 48
_POINTS = 300  # most points of a curve in SVG
_TICKS = 5


@dataclass(frozen=True)
class Curve:
    """Finite values at steps; both sequences are of one length and not empty.

    Attributes:
        name: for the legend.
        steps: optimizer steps, rising.
        values: one per step.
        colour: index of its colour.
        held_out: measured on held-out data: drawn dashed and never smoothed.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    colour: int = 0
    held_out: bool = False


def curves_of(lines: list[Record], keys: Sequence[str]) -> list[Curve]:
    """One curve per metric of a run; metrics that no line holds are left out.

    Args:
        lines: of its ``metrics.jsonl``.
        keys: metrics; the position of a key decides its colour.
    """
    columns = [(key, *column(lines, key)) for key in keys]
    return [
        Curve(_curve_name(key), steps, values, place % len(_COLOURS), key in HELD_OUT)
        for place, (key, steps, values) in enumerate(columns)
        if steps
    ]


def loss_curves(lines: list[Record]) -> list[Curve]:
    """The training losses of a run, and the held-out ones where it was validated."""
    return curves_of(lines, LOSSES) + curves_of(lines, HELD_OUT)


def _curve_name(key: str) -> str:
    name = key.removeprefix("loss/").removeprefix("validation/").replace("_", " ")
    return f"{name}, held out" if key in HELD_OUT else name


def running_mean(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Each value averaged with its neighbours, in a window of ``share`` of the curve."""
    reach = max(1, round(len(values) * share / 2))
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def save_plot(panels: Mapping[str, Sequence[Curve]], y_label: str, path: Path) -> None:
    """Write a PNG of panels side by side.

    Args:
        panels: title -> curves; at least one panel.
        y_label: of the left panel, with the unit.
        path: the file; its folder is created as needed.
    """
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    (row,) = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        for curve in curves:
            _plot_curve(axes, curve)
        axes.set(xlabel="optimizer step", title=title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    row[0].set_ylabel(y_label)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def _plot_curve(axes: Axes, curve: Curve) -> None:
    colour = _COLOURS[curve.colour]
    if curve.held_out:
        axes.plot(curve.steps, curve.values, "--o", color=colour, label=curve.name, markersize=3)
        return
    if len(curve.steps) < _SMOOTHED:
        axes.plot(curve.steps, curve.values, color=colour, label=curve.name)
        return
    axes.plot(curve.steps, curve.values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(curve.steps, running_mean(curve.values), color=colour, label=curve.name)


@dataclass(frozen=True)
class _Frame:
    """Maps steps and values to coordinates of the SVG."""

    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self.last_step

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def svg_chart(curves: Sequence[Curve], what: str) -> str:
    """SVG with axes and smoothed curves, followed by a legend as a list.

    Args:
        curves: at least one.
        what: the values in words, for screen readers.
    """
    smoothed = [thinned_curve(curve) for curve in curves]
    values = [value for curve in smoothed for value in curve.values]
    low, high = min(0.0, *values), max(values)
    frame = _Frame(
        max(1, *(curve.steps[-1] for curve in curves)), low, high if high > low else low + 1
    )
    spoken = "; ".join(
        f"{c.name} from {number(c.values[0])} to {number(c.values[-1])}" for c in smoothed
    )
    drawing = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(what)}: {escape(spoken)}">'
        f"{_svg_axes(frame)}{''.join(_svg_curve(curve, frame) for curve in smoothed)}</svg>"
    )
    keys = "".join(
        f'<li><span class="key c{curve.colour}"></span>{escape(curve.name)}</li>'
        for curve in curves
    )
    return f'{drawing}<ul class="legend">{keys}</ul>'


def thinned_curve(curve: Curve) -> Curve:
    """Smoothed, with at most as many points as a screen shows; held-out curves stay as they are."""
    if curve.held_out:
        return curve
    stride = -(-len(curve.steps) // _POINTS)
    values = running_mean(curve.values)
    return Curve(curve.name, curve.steps[::stride], values[::stride], curve.colour)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** floor(log10(rough))
    step = next(magnitude * unit for unit in (1, 2, 5, 10) if magnitude * unit >= rough)
    first = -(-low // step)
    return [step * (first + place) for place in range(int((high - first * step) // step) + 1)]


def _svg_axes(frame: _Frame) -> str:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for step in ticks(0, frame.last_step):
        x = frame.x(step)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{count(step)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">optimizer step</text>')
    return "".join(parts)


def _svg_curve(curve: Curve, frame: _Frame) -> str:
    points = " ".join(
        f"{frame.x(step):.1f},{frame.y(value):.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    )
    dashes = ' stroke-dasharray="5 4"' if curve.held_out else ""
    return f'<polyline class="line c{curve.colour}"{dashes} points="{points}"/>'
