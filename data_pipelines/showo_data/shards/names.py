"""From what a config names to a list of tar files."""

from collections.abc import Iterable
from pathlib import Path

from braceexpand import braceexpand


def expand(urls: str | Iterable[str]) -> list[str]:
    """The shards that brace patterns such as ``shard-{000..005}.tar`` name, in their order.

    Raises:
        ValueError: a pattern's braces do not close, or nothing is named.
        FileNotFoundError: a shard does not exist; the line names the first one and its pattern.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    shards = []
    for pattern in patterns:
        try:
            named = list(braceexpand(pattern))
        except ValueError as error:
            raise ValueError(f"shard pattern {pattern!r}: {error}") from None
        missing = [name for name in named if not Path(name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"shard {missing[0]!r} does not exist "
                f"({len(missing)} of the {len(named)} shards of {pattern!r} are missing)"
            )
        shards += named
    if not shards:
        raise ValueError("no shard is named: the list of shards is empty")
    return shards
