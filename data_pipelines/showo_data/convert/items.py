"""What every converter hands to the writer: inputs in a fixed order, not yet read."""

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from showo_data.members import BadSampleError

# The files of one sample: extension → bytes, text, or what JSON can hold.
Members = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        name: where it lies, for a person who looks for a bad one.
        load: reads it; usually one sample, several for a text that is cut into pieces.
            Raises :class:`showo_data.members.BadSampleError` with the reason when it cannot be used.
    """

    name: str
    load: Callable[[], list[Members]]


def find_files(patterns: Iterable[str]) -> list[str]:
    """The files that paths, brace patterns and wildcards name, in the order of the patterns.

    Raises:
        FileNotFoundError: a pattern names no file.
        ValueError: a pattern's braces do not close.
    """
    found: list[str] = []
    for pattern in patterns:
        for path in _braces(pattern):
            names = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
            if not names or not Path(names[0]).is_file():
                raise FileNotFoundError(f"no file {path!r}")
            found += names
    return found


def text_of(value: Any) -> str:
    """The text in a cell or field.

    Raises:
        BadSampleError: it is empty or no text.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError("no-text")
    return value


def _braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"file pattern {pattern!r}: {error}") from None
