"""Counts of right and wrong, with the uncertainty that their number leaves."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

_Z95 = NormalDist().inv_cdf(0.975)


def wilson(correct: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, 1927), 95 % by default; (0, 1) of nothing."""
    assert 0 <= correct <= total
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    middle = share + z * z / (2 * total)
    half = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


@dataclass
class Tally:
    """How many of how many were right."""

    correct: int = 0
    total: int = 0

    def add(self, right: bool) -> None:
        self.correct += right
        self.total += 1

    @property
    def accuracy(self) -> float | None:
        """Share of right ones, None of nothing."""
        return self.correct / self.total if self.total else None

    def to_json(self) -> dict[str, float | None]:
        """Counts, accuracy and its 95 % interval, as fractions."""
        low, high = wilson(self.correct, self.total)
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
        }
