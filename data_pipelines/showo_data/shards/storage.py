"""Settings for access to shards (cache, retries, commands), and the command-line options for them."""

import argparse
import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple


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


class RemoteState(NamedTuple):
    """Known by a server about a file, which changes when the file does.

    Attributes:
        size: in bytes; None: unknown, as of the output of a ``pipe:`` command.
        etag: ETag or another mark of this version; empty if the server gives none.
    """

    size: int | None
    etag: str

    def differs(self, now: "RemoteState") -> bool:
        """Whether the file is another one now; what one of the two does not know is not compared."""
        return self.size not in (None, now.size) or (
            bool(self.etag and now.etag) and self.etag != now.etag
        )


UNKNOWN = RemoteState(None, "")


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
        timeout_s: seconds that a sample may wait for its remote shard, all requests, retries and pauses
            together; of a copy into the cache, each part of 8 MB has so many.
        until: end of that time for the sample that is read, by ``time.monotonic``; None: it begins with the
            next request.
    """

    cache_dir: str | None = None
    cache_gb: float = 0.0
    retries: int = 5
    pause_s: float = 0.4
    allow_pipe: bool = False
    timeout_s: float = 60.0
    until: float | None = None

    @property
    def folder(self) -> Path:
        """The cache folder."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "showo-dist"

    def started(self) -> "Storage":
        """The same settings, with ``timeout_s`` from now on."""
        return replace(self, until=time.monotonic() + self.timeout_s)

    def timed(self) -> "Storage":
        """The same settings, with an end of the time: the one they have, or else from now on."""
        return self if self.until is not None else self.started()

    def probing(self) -> "Storage":
        """The same settings for a shard that failed before: one attempt, in a quarter of the time."""
        end = time.monotonic() + self.timeout_s / 4
        return replace(self, retries=0, until=end if self.until is None else min(end, self.until))

    @property
    def left_s(self) -> float:
        """Seconds until the end of the time; not positive when it is over."""
        return self.timeout_s if self.until is None else self.until - time.monotonic()

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
    group.add_argument(
        "--timeout-s",
        type=float,
        default=default.timeout_s,
        help="seconds to wait for a request with its repetitions; default %(default)s",
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
    if not arguments.timeout_s > 0:
        raise ValueError(f"--timeout-s must be above 0, not {arguments.timeout_s}")
    return Storage(
        cache_dir=arguments.cache_dir,
        cache_gb=arguments.cache_gb,
        retries=arguments.retries,
        allow_pipe=arguments.allow_pipe,
        timeout_s=arguments.timeout_s,
    )
