"""What this process knows about shards that cannot be read: they are asked again, but not by every sample.

A shard that failed is not asked again for ten times as long as the failed attempt took, at most for
``Storage.timeout_s``; its samples fail at once. The attempt after that is a short one without retries. So a
shard that does not answer costs at most a fifth of the time, and is used again soon after it comes back. A
server is treated in the same way once two of its shards in a row gave no answer.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from showo_data.shards.storage import Storage, UnreadableShardError

# Reasons with which a server does not answer at all.
_SILENT = ("shard-timeout", "http-unreachable")


@dataclass
class _Outage:
    """The last failure of a shard or server; ``until`` it is not asked, by ``time.monotonic``."""

    reason: str = ""
    until: float = 0.0
    silent: set[str] = field(default_factory=set)


OUTAGES: dict[str, _Outage] = {}  # of this process, by shard and by server


@contextmanager
def attempt(shard: str, storage: Storage) -> Iterator[Storage]:
    """Read a remote shard with the settings that this gives, and note whether it succeeds.

    Raises:
        UnreadableShardError: the shard or its server failed, and is not asked again yet.
    """
    server, start = _server(shard), time.monotonic()
    found = [outage for name in (shard, server) if (outage := OUTAGES.get(name))]
    for outage in found:
        if start < outage.until:
            raise UnreadableShardError(
                outage.reason, f"{shard}: failed, and is not asked again yet"
            )
    try:
        yield storage.probing() if found else storage
    except UnreadableShardError as error:
        if error.reason != "changed-shard":  # an answer, which will be the same
            now = time.monotonic()
            rest = min(10 * (now - start), storage.timeout_s)
            _note(shard, server, error.reason, now + rest)
        raise
    if found:
        OUTAGES.pop(shard, None)
        OUTAGES.pop(server, None)


def _note(shard: str, server: str, reason: str, until: float) -> None:
    OUTAGES[shard] = _Outage(reason, until)
    if reason not in _SILENT:
        OUTAGES.pop(server, None)
        return
    outage = OUTAGES.setdefault(server, _Outage(reason))
    outage.silent.add(shard)
    if len(outage.silent) > 1:
        outage.reason, outage.until = reason, until


def _server(shard: str) -> str:
    """Return the server of a URL, "https://host:port", or the bucket."""
    return "/".join(shard.split("/", 3)[:3])
