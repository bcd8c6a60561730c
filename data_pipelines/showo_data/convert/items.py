"""Inputs of a conversion: every converter yields them in a fixed order, to be loaded by the writer."""

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from showo_data.members import BadSampleError

# The members of one sample: extension → bytes, text, or an object for JSON.
Members = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        name: where it comes from, to find a bad one.
        load: reads it and returns one sample, or several for a text that is cut into pieces. Raises
            :class:`showo_data.members.BadSampleError` with the reason if it cannot be used.
    """

    name: str
    load: Callable[[], list[Members]]


def find_files(patterns: Iterable[str]) -> list[str]:
    """Find the files of paths, brace patterns and wildcards, in the order of the patterns.

    Raises:
        FileNotFoundError: a pattern matches no file.
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
    """Return ``value`` if it is a text.

    Raises:
        BadSampleError: it is empty, or not a text.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError("no-text")
    return value


def _braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"file pattern {pattern!r}: {error}") from None
