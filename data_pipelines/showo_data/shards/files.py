"""Read members of shards by byte offset; a bounded number of shards, local or remote, is open at a time."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from showo_data.shards.cache import open_copy
from showo_data.shards.index import ShardHeader, forget_index, load_indexed
from showo_data.shards.names import PIPE, scheme
from showo_data.shards.remote import RemoteState, remote_read, remote_state
from showo_data.shards.storage import Storage, UnreadableShardError
from showo_data.shards.tables import BLOCK, SPARSE, Member, ShardTable

# Bytes read behind a member, which mostly hold the sample's next one: the caption of an image.
_READ_AHEAD = 16 << 10


class _Bytes(Protocol):
    """Random access to the bytes of one shard."""

    def read(self, first: int, size: int) -> bytes: ...

    def close(self) -> None: ...

    @property
    def is_deleted(self) -> bool: ...


class _File:
    """A local file. pread does not move the file position, which forked processes share."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, first: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, first)

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def is_deleted(self) -> bool:
        """Whether the cache has deleted the file, whose space is freed when it is closed."""
        return os.fstat(self._descriptor).st_nlink == 0


class _Ranges:
    """A remote shard, read by ranges, each with some bytes behind what was asked for."""

    is_deleted = False

    def __init__(self, shard: str, storage: Storage, known: RemoteState) -> None:
        self._shard, self._storage, self._current = shard, storage, storage
        self._known, self._first, self._data = known, 0, b""
        # The answers of web servers tell a change; object stores are asked once.
        if scheme(shard) not in ("http", "https") and known.differs(remote_state(shard, storage)):
            raise UnreadableShardError("changed-shard", f"{shard}: has changed in its store")

    def read(self, first: int, size: int) -> bytes:
        start = first - self._first
        if start < 0 or start + size > len(self._data):
            wanted = size + _READ_AHEAD
            try:
                self._data = remote_read(self._shard, first, wanted, self._current, self._known)
            except UnreadableShardError:
                # Later samples of this shard fail at once, until an attempt succeeds.
                self._current = self._storage.without_retries
                raise
            self._current, self._first, start = self._storage, first, 0
        return self._data[start : start + size]

    def close(self) -> None:
        self._data = b""


class _Open(NamedTuple):
    bytes: _Bytes
    table: ShardTable
    size: int


class OpenShards:
    """Reader of members by byte offset, which keeps the ``limit`` most recently used shards open.

    It opens shards on demand, and may be pickled to a worker process, which opens its own. With ``headers``,
    a shard that was indexed anew since they were loaded is refused: its samples may have other numbers.
    """

    def __init__(
        self,
        limit: int = 64,
        storage: Storage | None = None,
        headers: Iterable[ShardHeader] = (),
    ) -> None:
        self._limit, self._storage = limit, storage or Storage()
        self._sha256 = {header.path: header.sha256 for header in headers}
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._failing: set[str] = set()

    def table(self, shard: str) -> ShardTable:
        """Return the table of the samples of ``shard``.

        Raises:
            OSError: the shard or its index cannot be read; with the reason "changed-shard", see :meth:`read`.
        """
        return self._get(shard).table

    def read(self, shard: str, member: Member) -> bytes:
        """Read one member; fewer bytes than ``member.size`` if the shard ends early.

        Raises:
            OSError: the shard cannot be read at the moment. As an UnreadableShardError with the reason
                "changed-shard", other bytes are in this place than were indexed; "sparse-member": the member
                is stored sparse.
        """
        if member.size == SPARSE:
            raise UnreadableShardError(
                "sparse-member", f"{shard}: a {member.extension} is stored sparse (tar -S)"
            )
        opened = self._get(shard)
        # A size beyond the end is a damaged header's, and may be more than the memory.
        size = member.size
        if member.offset + size > opened.size:
            size = max(0, opened.size - member.offset)
        try:
            data = opened.bytes.read(member.offset - BLOCK, BLOCK + size)
        except UnreadableShardError as error:
            self._forget_if_changed(shard, error)
            raise
        header = data[:BLOCK]
        if zlib.crc32(header) != member.check and len(header) == BLOCK:
            raise UnreadableShardError(
                "changed-shard", f"{shard}: changed at byte {member.offset} since it was indexed"
            )
        return data[BLOCK:]

    def _get(self, shard: str) -> _Open:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        self._close_removed()
        header, table, state = load_indexed(shard, self._storage)
        if self._sha256.get(shard, header.sha256) != header.sha256:
            raise UnreadableShardError("changed-shard", f"{shard}: was indexed anew during the run")
        try:
            opened = self._open_bytes(shard, header, state)
        except UnreadableShardError as error:
            self._forget_if_changed(shard, error)
            raise
        self._open[shard] = _Open(opened, table, header.size)
        if len(self._open) > self._limit:
            self._open.popitem(last=False)[1].bytes.close()
        return self._open[shard]

    def _forget_if_changed(self, shard: str, error: UnreadableShardError) -> None:
        if error.reason == "changed-shard" and scheme(shard):
            forget_index(shard, self._storage)

    def _open_bytes(self, shard: str, header: ShardHeader, state: RemoteState) -> _Bytes:
        """Open a local shard, or the cached copy of a remote one, or its ranges if the cache has no room."""
        if not scheme(shard):
            return _File(os.open(shard, os.O_RDONLY))
        failing = shard in self._failing
        storage = self._storage.without_retries if failing else self._storage
        try:
            copy = open_copy(shard, storage, header.sha256)
        except UnreadableShardError:
            self._failing.add(shard)
            raise
        self._failing.discard(shard)
        if copy is not None:
            return _File(copy)
        if scheme(shard) == PIPE:
            raise UnreadableShardError("cache-full", f"{shard}: does not fit into data.cache_gb")
        return _Ranges(shard, self._storage, state)

    def _close_removed(self) -> None:
        for shard in [shard for shard, opened in self._open.items() if opened.bytes.is_deleted]:
            self._open.pop(shard).bytes.close()

    def close(self) -> None:
        """Close every shard."""
        while self._open:
            self._open.popitem()[1].bytes.close()

    def __getstate__(self) -> tuple[int, Storage, dict[str, str]]:
        return self._limit, self._storage, self._sha256

    def __setstate__(self, state: tuple[int, Storage, dict[str, str]]) -> None:
        self.__init__(*state[:2])  # type: ignore[misc]
        self._sha256 = state[2]
