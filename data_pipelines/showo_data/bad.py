"""Counts what was skipped, by reason and shard."""

from collections import Counter
from collections.abc import Iterable

from showo_data.samples import Skipped


class BadSamples:
    """Bad samples seen so far; adding is cheap, reporting is one line."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Count every one of ``skipped``."""
        self.counts.update((bad.reason, bad.shard) for bad in skipped)

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.counts.total()

    def by_reason(self) -> dict[str, int]:
        """Counts per reason, the most frequent first."""
        return self._sums(0)

    def by_shard(self) -> dict[str, int]:
        """Counts per shard, the worst first."""
        return self._sums(1)

    def summary(self) -> str:
        """One line: how many, why, and the three worst shards."""
        if not self.counts:
            return "no sample was skipped"
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.by_reason().items())
        worst = ", ".join(f"{shard} {n}" for shard, n in list(self.by_shard().items())[:3])
        return f"{self.total} samples skipped: {reasons}; most in {worst}"

    def _sums(self, part: int) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for name, count in self.counts.items():
            sums[name[part]] += count
        return dict(sums.most_common())
