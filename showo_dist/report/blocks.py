"""What a report consists of, before it is Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str


@dataclass(frozen=True)
class Missing:
    """Says that an input was not there."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands, as typed."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as shown; the first column is a name, all others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A PNG file with words below it; one with small print ``scrolls`` rather than shrinks."""

    path: Path
    caption: str
    scrolls: bool = False


Block = Text | Missing | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
