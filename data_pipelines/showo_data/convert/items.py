"""Inputs of a conversion: every converter yields them in a fixed order, to be loaded by the writer."""

import errno
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from showo_data.members import BadSampleError
from showo_data.shards.names import braces
from showo_data.shards.storage import UnreadableShardError
from showo_data.text import is_apple_double

# Reason for a file of which nothing can be read, for a part of one, and for all of one behind a broken place.
FILE = "unreadable-file"
PART = "unreadable-part"
REST = "unreadable-rest"
# Errors of the system that are about one file: it is missing, forbidden, or no file that can be read.
_OF_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EINVAL, errno.EILSEQ, errno.ENXIO, errno.ENODEV),
}
# Reasons of shards that will be the same when they are read again.
_LASTING = ("changed-shard", "truncated")
# The members of one sample: extension → bytes, text, or an object for JSON.
Members = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Note:
    """Something to count in the summary that costs no input: ``what``, at first ``where``."""

    what: str
    where: str


# What is loaded of an input: samples, the reason of each part that is left out, and notes.
Pieces = Sequence[Members | BadSampleError | Note]


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        name: where it comes from, to find a bad one.
        load: reads it and returns one sample, or several for a text that is cut into pieces; in the place of
            a part that cannot be used, the error with its reason. Raises
            :class:`showo_data.members.BadSampleError` if nothing can be used.
        mark: differs where the content does, if the name is a number; known before the input is loaded.
    """

    name: str
    load: Callable[[], Pieces]
    mark: str | int = ""


def find_files(patterns: Iterable[str]) -> list[str]:
    """Find the files of paths, brace patterns and wildcards, in the order of the patterns.

    ``**`` stands for folders of any depth.

    Raises:
        FileNotFoundError: a pattern matches no file.
        ValueError: a pattern's braces do not close, or name too many files; or two patterns name one file.
    """
    found: list[str] = []
    for pattern in patterns:
        for path in braces(pattern, "file pattern"):
            names = [path]
            if glob.has_magic(path) and not os.path.lexists(path):
                matches = sorted(glob.glob(path, recursive=True))
                names = [name for name in matches if not is_apple_double(name)]
            missing = next((name for name in names if not os.path.isfile(name)), None)
            if missing or not names:
                raise FileNotFoundError(f"no file {(missing or path)!r}")
            found += names
    counts = Counter(map(os.path.abspath, found))
    if twice := next((name for name in found if counts[os.path.abspath(name)] > 1), None):
        raise ValueError(
            f"{twice}: named twice, its inputs would be too: let only one pattern match it"
        )
    return found


def is_passing(error: Exception) -> TypeGuard[OSError]:
    """Whether an error is of a server or this machine, so that the same input may be readable later.

    An error without a number is that of a decoder.
    """
    if isinstance(error, UnreadableShardError):
        return error.reason not in _LASTING
    return isinstance(error, OSError) and error.errno not in (None, *_OF_FILE)


def bad_item(name: str, reason: str) -> Item:
    """An input that is known to be unusable before it is loaded: it is counted under ``reason``."""

    def load() -> list[Members]:
        raise BadSampleError(reason)

    return Item(name, load)


def text_of(value: Any) -> str:
    """Return ``value`` if it is a text.

    Raises:
        BadSampleError: it is empty, or not a text.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError("no-text")
    return value
