"""Open shards, a bounded number of them, wherever they are."""

import os
from collections import OrderedDict
from typing import NamedTuple, Protocol

from showo_data.shards.cache import open_copy
from showo_data.shards.index import load_table
from showo_data.shards.names import PIPE, scheme
from showo_data.shards.remote import remote_read
from showo_data.shards.storage import Storage, UnreadableShardError
from showo_data.shards.tables import Member, ShardTable

_READ_AHEAD = 16 << 10  # bytes after a member: where the text of an image mostly is


class _Bytes(Protocol):
    """Random access to the bytes of one shard."""

    def read(self, first: int, size: int) -> bytes: ...

    def close(self) -> None: ...

    @property
    def is_gone(self) -> bool: ...


class _File:
    """A file of this machine, read without moving a position that a fork might share."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, first: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, first)

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def is_gone(self) -> bool:
        """Whether the cache has removed the file; its space is free once it is closed."""
        return os.fstat(self._descriptor).st_nlink == 0


class _Ranges:
    """A remote shard, read piece by piece; the bytes behind a piece come along with it."""

    is_gone = False

    def __init__(self, shard: str, storage: Storage) -> None:
        self._shard, self._storage, self._now = shard, storage, storage
        self._first, self._data = 0, b""

    def read(self, first: int, size: int) -> bytes:
        start = first - self._first
        if start < 0 or start + size > len(self._data):
            wanted = size + _READ_AHEAD
            try:
                self._data = remote_read(self._shard, first, wanted, self._now)
            except UnreadableShardError:
                self._now = self._storage.impatient  # later samples of a dead shard fail at once
                raise
            self._now, self._first, start = self._storage, first, 0
        return self._data[start : start + size]

    def close(self) -> None:
        self._data = b""


class _Open(NamedTuple):
    bytes: _Bytes
    table: ShardTable


class OpenShards:
    """Reads members by byte offset; keeps at most ``limit`` shards open, the most recently used.

    Nothing is opened before it is asked for, so an instance may travel to a worker process.
    """

    def __init__(self, limit: int = 64, storage: Storage | None = None) -> None:
        self._limit, self._storage = limit, storage or Storage()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._failing: set[str] = set()

    def table(self, shard: str) -> ShardTable:
        """The table of samples of ``shard``."""
        return self._get(shard).table

    def read(self, shard: str, member: Member) -> bytes:
        """The bytes of one member; fewer than ``member.size`` where the shard ends early.

        Raises:
            OSError: the shard cannot be read (now).
        """
        return self._get(shard).bytes.read(member.offset, member.size)

    def _get(self, shard: str) -> _Open:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        self._close_removed()
        table = load_table(shard, self._storage)
        self._open[shard] = _Open(self._open_bytes(shard), table)
        if len(self._open) > self._limit:
            self._open.popitem(last=False)[1].bytes.close()
        return self._open[shard]

    def _open_bytes(self, shard: str) -> _Bytes:
        if not scheme(shard):
            return _File(os.open(shard, os.O_RDONLY))
        failing = shard in self._failing
        try:
            copy = open_copy(shard, self._storage.impatient if failing else self._storage)
        except UnreadableShardError:
            self._failing.add(shard)
            raise
        self._failing.discard(shard)
        if copy is not None:
            return _File(copy)
        if scheme(shard) == PIPE:
            raise UnreadableShardError("cache-full", f"{shard}: does not fit into data.cache_gb")
        return _Ranges(shard, self._storage)

    def _close_removed(self) -> None:
        for shard in [shard for shard, opened in self._open.items() if opened.bytes.is_gone]:
            self._open.pop(shard).bytes.close()

    def close(self) -> None:
        """Close every shard."""
        while self._open:
            self._open.popitem()[1].bytes.close()

    def __getstate__(self) -> tuple[int, Storage]:
        return self._limit, self._storage

    def __setstate__(self, state: tuple[int, Storage]) -> None:
        self.__init__(*state)  # type: ignore[misc]
