"""How shards are reached: what a config says about caches, retries and commands.

How commands reach shards: the same as ``data.*`` in a training config, as options."""

import argparse
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path


class UnreadableShardError(OSError):
    """A shard, or a part of it, cannot be read now.

    Attributes:
        reason: a short code, such as "http-403".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["UnreadableShardError"], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How shards are reached; the same for all processes of a node.

    Attributes:
        cache_dir: folder for the indices of shards that are remote or read-only, and for cached shards;
            None: ``showo-dist`` in the user's cache folder.
        cache_gb: most gigabytes (10⁹ bytes) of remote shards to keep there; 0: none, each sample is a
            request for its bytes.
        retries: how often a failed request is made again.
        pause_s: seconds before the second retry; each further pause is twice as long, up to 30 s.
        allow_pipe: run the commands of ``pipe:`` URLs.
    """

    cache_dir: str | None = None
    cache_gb: float = 0.0
    retries: int = 5
    pause_s: float = 0.4
    allow_pipe: bool = False

    @property
    def folder(self) -> Path:
        """The cache folder."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "showo-dist"

    @property
    def impatient(self) -> "Storage":
        """The same without retries."""
        return replace(self, retries=0)

    @property
    def limit(self) -> int:
        """Most bytes of cached shards."""
        return int(self.cache_gb * 1e9)


def digest(text: str) -> str:
    """A file name for ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add options for everything that :class:`showo_data.shards.Storage` lets a user choose."""
    group = parser.add_argument_group("remote shards")
    default = Storage()
    group.add_argument("--cache-dir", help="folder for indices and cached shards")
    group.add_argument(
        "--cache-gb",
        type=float,
        default=default.cache_gb,
        help="gigabytes of whole shards to keep there; default %(default)s",
    )
    group.add_argument(
        "--retries",
        type=int,
        default=default.retries,
        help="of a failed request; default %(default)s",
    )
    group.add_argument("--allow-pipe", action="store_true", help="run the commands of pipe: URLs")


def storage_of(arguments: argparse.Namespace) -> Storage:
    """What the options say.

    Raises:
        ValueError: a number below 0.
    """
    for name in ("cache_gb", "retries"):
        value = getattr(arguments, name)
        if value < 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0, not {value}")
    return Storage(
        cache_dir=arguments.cache_dir,
        cache_gb=arguments.cache_gb,
        retries=arguments.retries,
        allow_pipe=arguments.allow_pipe,
    )
