"""Numbers as people read them."""

from collections.abc import Sequence

from showo_dist.report.inputs import Record


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits or all before the point; a dash when it is absent."""
    if value is None:
        return "–"
    shown = count(value) if abs(value) >= 100 else f"{value:.3g}"
    return f"{shown} {unit}".strip()


def count(value: float | None) -> str:
    """A whole number with its thousands separated; a dash when it is absent."""
    return "–" if value is None else f"{value:,.0f}"


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def tally(entry: Record | None) -> str:
    """``18/20 = 90.0 % (69.9 to 97.2)``: right ones, share, 95 % interval."""
    if entry is None or not entry["total"]:
        return "–"
    interval = f"({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
    return f"{entry['correct']}/{entry['total']} = {percent(entry['accuracy'])} {interval}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
