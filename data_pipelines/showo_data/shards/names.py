"""Expand the shard patterns of a config to a list of paths and URLs."""

import re
from collections.abc import Iterable
from pathlib import Path

import fsspec
from braceexpand import braceexpand

from showo_data.shards.storage import Storage

PIPE = "pipe"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(pipe):", re.IGNORECASE)


def scheme(shard: str) -> str:
    """Return "http", "s3", "pipe" …; empty for a path."""
    match = _SCHEME.match(shard)
    return (match[1] or match[2]).lower() if match else ""


def expand(urls: str | Iterable[str], storage: Storage | None = None) -> list[str]:
    """Expand brace patterns such as ``shard-{000..005}.tar``, in order.

    Local shards must exist; remote ones are not checked before they are read.

    Raises:
        ValueError: a pattern's braces do not close, the list is empty, ``pipe:`` is not allowed, or no
            installed package opens such URLs.
        FileNotFoundError: a local shard does not exist; the message names the first one and its pattern.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    shards = []
    for pattern in patterns:
        try:
            named = list(braceexpand(pattern))
        except ValueError as error:
            raise ValueError(f"shard pattern {pattern!r}: {error}") from None
        for kind in {scheme(name) for name in named}:
            _require_opener(kind, pattern, storage or Storage())
        _require_files(named, pattern)
        shards += named
    if not shards:
        raise ValueError("no shard is named: the list of shards is empty")
    return shards


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
            f"shard {missing[0]!r} does not exist "
            f"({len(missing)} of the {len(named)} shards of {pattern!r} are missing)"
        )
