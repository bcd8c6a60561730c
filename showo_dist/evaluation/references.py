"""Published values, to set beside one's own."""

from dataclasses import dataclass

from showo_dist.evaluation.results import OVERALL

_RECA = "RecA, arXiv 2509.07295"
_WISE = "leaderboard of WISE, arXiv 2503.07265"


@dataclass(frozen=True)
class Reference:
    """A published result.

    Attributes:
        model: which one.
        framework: of the benchmark.
        measure: which of its measures.
        value: percent.
        source: who published it.
    """

    model: str
    framework: str
    measure: str
    value: float
    source: str


REFERENCES = (
    Reference("Show-o 256 CLIP", "geneval", OVERALL, 56.6, _RECA),
    Reference("Show-o 256 CLIP + RecA", "geneval", OVERALL, 61.9, _RECA),
    Reference("Show-o 512 CLIP", "geneval", OVERALL, 66.2, _RECA),
    Reference("Show-o 512 CLIP + RecA", "geneval", OVERALL, 72.3, _RECA),
    Reference("Show-o 256 CLIP", "dpg", OVERALL, 70.65, _RECA),
    Reference("Show-o 256 CLIP + RecA", "dpg", OVERALL, 75.70, _RECA),
    Reference("Show-o 512 CLIP", "dpg", OVERALL, 82.21, _RECA),
    Reference("Show-o 512 CLIP + RecA", "dpg", OVERALL, 84.94, _RECA),
    Reference("Show-o 256", "wise", OVERALL, 30.0, _WISE),
    Reference("Show-o 512", "wise", OVERALL, 35.0, _WISE),
)


def references(framework: str) -> list[Reference]:
    """The published results of one benchmark; none where none is known."""
    return [reference for reference in REFERENCES if reference.framework == framework]
