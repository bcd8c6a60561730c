"""Counts what was skipped, by reason and shard."""

from collections import Counter
from collections.abc import Iterable

from showo_data.samples import Skipped

# Fewer samples than this say nothing about a fraction: one early bad sample must not stop a run.
_ENOUGH = 200


class BadSamples:
    """Bad samples seen so far; adding is cheap, reporting is one line."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tried = 0

    def add(self, skipped: Iterable[Skipped], good: int = 0) -> None:
        """Count every one of ``skipped``, and ``good`` samples that were read beside them."""
        bad = Counter((item.reason, item.shard) for item in skipped)
        self.counts.update(bad)
        self.tried += bad.total() + good

    @classmethod
    def merged(cls, parts: Iterable["BadSamples"]) -> "BadSamples":
        """The sum of what several ranks have counted."""
        whole = cls()
        for part in parts:
            whole.counts.update(part.counts)
            whole.tried += part.tried
        return whole

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.counts.total()

    def exceeds(self, fraction: float) -> bool:
        """Whether more than ``fraction`` of the samples are bad; a start of 200 samples is taken as given."""
        return self.total > fraction * max(self.tried, _ENOUGH)

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
