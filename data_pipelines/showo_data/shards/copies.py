"""A whole shard as a file of this machine: itself, its copy in the cache, or a copy for the moment."""

import tempfile
from contextlib import ExitStack
from typing import BinaryIO

from showo_data.shards.cache import ShardCache
from showo_data.shards.names import scheme
from showo_data.shards.remote import remote_copy, remote_size
from showo_data.shards.storage import Storage, digest


def open_copy(shard: str, storage: Storage) -> int | None:
    """A file descriptor of a remote shard's copy in the cache; None when it has no place there.

    Raises:
        UnreadableShardError: it cannot be copied.
    """
    if not storage.limit:
        return None
    cache = ShardCache(storage.folder / "shards", storage.limit)
    return cache.open(
        digest(shard),
        lambda: remote_size(shard, storage),
        lambda stream: remote_copy(shard, stream, storage),
    )


def open_whole(shard: str, storage: Storage) -> BinaryIO:
    """A shard for reading from its beginning to its end.

    Raises:
        OSError: it cannot be read.
    """
    if not scheme(shard):
        return open(shard, "rb")
    copy = open_copy(shard, storage)
    if copy is not None:
        return open(copy, "rb")
    storage.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as on_error:
        stream = on_error.enter_context(tempfile.TemporaryFile(dir=storage.folder))
        remote_copy(shard, stream, storage)
        on_error.pop_all()
    stream.seek(0)
    return stream
