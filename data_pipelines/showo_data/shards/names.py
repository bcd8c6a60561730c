"""Expand the shard patterns of a config to a list of paths and URLs."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from shlex import quote

import fsspec
from braceexpand import braceexpand

from showo_data.shards.storage import Storage
from showo_data.text import is_apple_double

PIPE = "pipe"
_MOST = 1_000_000  # names of one pattern, more than any public data set has shards
_NAMED = 8  # bad shards in one message
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+|[a-zA-Z])\.\.(-?\d+|[a-zA-Z])(?:\.\.-?(\d+))?")
# Endings of files that are often given as shards, and what to do with them.
_ADVICE = {
    ".jsonl .jsonl.gz": "make shards with `showo-dist shards from-text {} --out OUT`",
    ".json": "make shards with `showo-dist shards from-llava {} --images FOLDER --out OUT`",
    ".parquet": "make shards with `showo-dist shards from-parquet {} --out OUT`, or from-text",
    ".tgz .gz .bz2 .xz .zst": "compressed shards cannot be read by offset; unpack them with gunzip, "
    "bunzip2, unxz or unzstd and name the .tar files",
    ".zip .7z .rar": "unpack {} and run `showo-dist shards from-folder FOLDER --out OUT`",
    ".csv .tsv .txt .arrow .npy .npz .h5 .hdf5 .lmdb .tfrecord .yaml": "make {} Parquet or JSON lines, "
    "and shards of that with `showo-dist shards from-parquet` or `from-text`",
    ".jpg .jpeg .png .webp .gif .bmp": "make shards of the folder that {} is in with "
    "`showo-dist shards from-folder FOLDER --out OUT`",
    ".index.safetensors": "name the .tar beside {}",
}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(pipe):", re.IGNORECASE)


def scheme(shard: str) -> str:
    """Return "http", "s3", "pipe" …; empty for a path."""
    match = _SCHEME.match(shard)
    return (match[1] or match[2]).lower() if match else ""


def expand(urls: str | Iterable[str], storage: Storage | None = None) -> list[str]:
    """Expand brace patterns such as ``shard-{000..005}.tar``, in order.

    Local shards must exist; remote ones are not checked before they are read.

    Raises:
        ValueError: a pattern's braces do not close or name too many shards, it is a folder, a wildcard or
            another kind of file, the list is empty or names a shard twice, ``pipe:`` is not allowed, or no
            installed package opens such URLs.
        FileNotFoundError: a local shard does not exist; the message names the first ones and their pattern.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    shards = []
    for pattern in patterns:
        if problem := misnamed(pattern):
            raise ValueError(f"shard {pattern!r}: {problem}")
        named = braces(pattern, "shard pattern")
        for kind in {scheme(name) for name in named}:
            _require_opener(kind, pattern, storage or Storage())
        _require_files(named, pattern)
        shards += named
    if not shards:
        raise ValueError("no shard is named: the list of shards is empty")
    counts = Counter(shard if scheme(shard) else os.path.abspath(shard) for shard in shards)
    if len(counts) < len(shards):
        twice = next(shard for shard, times in counts.items() if times > 1)
        raise ValueError(
            f"shard {twice!r} is named twice by {listed(patterns, ', ')}: name it once"
        )
    return shards


def braces(pattern: str, what: str) -> list[str]:
    """Expand the braces of a pattern; ``what`` it names is for the message.

    Raises:
        ValueError: the braces do not close, or name more than a million files.
    """
    count = prod(_names_of(group) for group in _GROUP.findall(pattern))
    if count > _MOST:
        raise ValueError(f"{what} {pattern!r}: its braces name more than {_MOST:,} files")
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"{what} {pattern!r}: {error}") from None


def _names_of(group: str) -> int:
    """The number of names that the content of one pair of braces stands for."""
    match = _RANGE.fullmatch(group)
    if match is None:
        return group.count(",") + 1
    first, last = (ord(end) if end.isalpha() else int(end) for end in match.group(1, 2))
    return abs(last - first) // max(1, int(match[3] or 1)) + 1


def listed(items: Sequence[object], separator: str) -> str:
    """List the first eight of what is wrong, and the number of the others."""
    more = [f"and {len(items) - _NAMED} more"] if len(items) > _NAMED else []
    return separator.join([*map(str, items[:_NAMED]), *more])


def misnamed(pattern: str) -> str:
    """Return what to write instead of a pattern that names no shards; empty if it may name some.

    Nothing is expanded, and the only files looked for are those behind a folder or wildcard.
    """
    kind = scheme(pattern)
    if kind == PIPE or (not kind and os.path.isfile(pattern) and pattern.lower().endswith(".tar")):
        return ""
    if "::" in re.sub(r"//\[[^\]]*\]", "//host", pattern):  # not the address of http://[::1]/
        return f"write several shards as a list: {', '.join(map(repr, pattern.split('::')))}"
    if kind:
        return ""
    folder = Path(pattern)
    if os.path.isdir(pattern):
        found = [p for p in folder.iterdir() if p.suffix == ".tar" and not is_apple_double(p)]
        return f"a folder; {_named_as(found)}" if found else _folder(pattern)
    if any(mark in pattern for mark in "*?["):
        found = [Path(p) for p in glob.iglob(pattern) if not is_apple_double(p)]
        return f"wildcards are not expanded; {_named_as(found)}"
    return _not_a_tar(pattern)


def _named_as(shards: list[Path]) -> str:
    """Say how to name these shards: as one pattern where their numbers have no gaps, else as a list."""
    names = sorted(map(str, shards))
    if not names:
        return (
            "nothing matches it; name the shards by a pattern such as 'train-{000000..000009}.tar'"
        )
    if len(names) == 1:
        return f"write {names[0]!r}"
    columns = list(zip(*(re.split(r"(\d+)", name) for name in names), strict=False))
    differ = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    if len(differ) == 1 and all(number.isdecimal() for number in columns[differ[0]]):
        first, last = (order(columns[differ[0]], key=int) for order in (min, max))
        start, end = (
            "".join(c[0] for c in part) for part in (columns[: differ[0]], columns[differ[0] + 1 :])
        )
        pattern = f"{start}{{{first}..{last}}}{end}"
        if int(last) - int(first) < len(names) and sorted(braceexpand(pattern)) == names:
            return f"write {pattern!r}"
    return f"write its {len(names)} shards as a list, {names[0]!r} to {names[-1]!r}"


def _folder(path: str) -> str:
    return f"a folder; make shards of its images with `showo-dist shards from-folder {quote(path)} --out OUT`"


def _not_a_tar(path: str) -> str:
    """Return the command that makes shards of a file of another kind; empty for a name of a tar."""
    lower, quoted = path.lower(), quote(path)
    for suffixes, advice in _ADVICE.items():
        if lower.endswith(tuple(suffixes.split())):
            return f"it is no tar; {advice.format(quoted)}"
    return ""


def _require_opener(kind: str, pattern: str, storage: Storage) -> None:
    if kind == PIPE:
        if not storage.allow_pipe:
            raise ValueError(f"shard {pattern!r} runs a command; allow with data.allow_pipe=true")
        if not storage.limit:
            raise ValueError(
                f"shard {pattern!r}: what a command prints must be kept to be read again; "
                "set data.cache_gb above 0"
            )
    elif kind not in ("", "http", "https"):
        try:
            fsspec.get_filesystem_class(kind)
        except (ValueError, ImportError) as error:
            raise ValueError(f"shard pattern {pattern!r}: {error}") from None


def _require_files(named: list[str], pattern: str) -> None:
    missing = [name for name in named if not scheme(name) and not Path(name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"shard {missing[0]!r} does not exist ({len(missing)} of the {len(named)} shards of "
            f"{pattern!r} are missing: {listed(missing, ', ')})"
        )
