"""Settings for access to shards (cache, retries, commands), and the command-line options for them."""

import argparse
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path


class UnreadableShardError(OSError):
    """A shard, or a part of it, cannot be read at the moment.

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
    """Settings for access to shards, the same in all processes of a node: ``data.*`` of a training config.

    Attributes:
        cache_dir: folder for cached shards and for the indices of shards that are remote or in a read-only
            folder; None: ``showo-dist`` in the user's cache folder.
        cache_gb: gigabytes (10⁹ bytes) of remote shards to keep there at most; 0: none, and every sample is
            a request for its bytes.
        retries: how often a failed request is repeated.
        pause_s: seconds before the second retry; each further pause is twice as long, up to 30 s.
        allow_pipe: allow ``pipe:`` URLs, whose commands are run.
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
    def without_retries(self) -> "Storage":
        """The same settings without retries."""
        return replace(self, retries=0)

    @property
    def limit(self) -> int:
        """Bytes of cached shards at most."""
        return int(self.cache_gb * 1e9)


def digest(text: str) -> str:
    """Return a file name for ``text``, such as a URL."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for access to shards, with the defaults of :class:`Storage`."""
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
        help="repetitions of a failed request; default %(default)s",
    )
    group.add_argument("--allow-pipe", action="store_true", help="run the commands of pipe: URLs")


def storage_of(arguments: argparse.Namespace) -> Storage:
    """Return the settings from the parsed options.

    Raises:
        ValueError: a number is below 0.
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
