"""Curves as SVG that follows the page's colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from showo_dist.report.curves import running_mean
from showo_dist.report.inputs import count, number

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 10, 48
_POINTS = 300  # most points of a drawn curve
_TICKS = 5


@dataclass(frozen=True)
class Curve:
    """Finite values at steps, both as long as the other, not empty."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class _Frame:
    """From steps and values to places in the drawing."""

    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self.last_step

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def line_chart(curves: Sequence[Curve], what: str) -> str:
    """A drawing with axes, smoothed curves and a legend.

    Args:
        curves: at least one.
        what: the values, for those who hear the page.
    """
    smoothed = [thin(curve) for curve in curves]
    values = [value for curve in smoothed for value in curve.values]
    low, high = min(0.0, *values), max(values)
    frame = _Frame(
        max(1, *(curve.steps[-1] for curve in curves)), low, high if high > low else low + 1
    )
    lines = "".join(_path(curve, frame, place) for place, curve in enumerate(smoothed))
    spoken = "; ".join(
        f"{c.name} from {number(c.values[0])} to {number(c.values[-1])}" for c in smoothed
    )
    drawing = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(what)}: {escape(spoken)}">{_axes(frame)}{lines}</svg>'
    )
    keys = "".join(
        f'<li><span class="key c{place % 6}"></span>{escape(curve.name)}</li>'
        for place, curve in enumerate(curves)
    )
    return f'{drawing}<ul class="legend">{keys}</ul>'


def thin(curve: Curve) -> Curve:
    """Smoothed, and with at most so many points as a screen shows."""
    stride = -(-len(curve.steps) // _POINTS)
    values = running_mean(list(curve.values))
    return Curve(curve.name, curve.steps[::stride], values[::stride])


def ticks(low: float, high: float) -> list[float]:
    """Some round numbers between two."""
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** floor(log10(rough))
    step = next(magnitude * unit for unit in (1, 2, 5, 10) if magnitude * unit >= rough)
    first = -(-low // step)
    return [step * (first + place) for place in range(int((high - first * step) // step) + 1)]


def _axes(frame: _Frame) -> str:
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


def _path(curve: Curve, frame: _Frame, place: int) -> str:
    points = " ".join(
        f"{frame.x(step):.1f},{frame.y(value):.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    )
    return f'<polyline class="line c{place % 6}" points="{points}"/>'
