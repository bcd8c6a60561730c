"""Read members of shards by byte offset; a bounded number of shards, local or remote, is open at a time."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol
from zlib import crc32

from showo_data.shards.cache import open_copy
from showo_data.shards.index import ShardHeader, forget_index, load_indexed
from showo_data.shards.names import PIPE, scheme
from showo_data.shards.outages import attempt
from showo_data.shards.remote import remote_read, remote_state
from showo_data.shards.storage import RemoteState, Storage, UnreadableShardError
from showo_data.shards.tables import BLOCK, SPARSE, Member, ShardTable

# Bytes read behind a member, which mostly hold the sample's next one: the caption of an image.
_READ_AHEAD = 16 << 10


class _Bytes(Protocol):
    """Random access to the bytes of one shard."""

    def read(self, size: int, first: int) -> bytes: ...

    def close(self) -> None: ...

    @property
    def is_deleted(self) -> bool: ...


class _File:
    """A local file. pread does not move the file position, which forked processes share."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.read = partial(os.pread, descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def is_deleted(self) -> bool:
        """Whether the cache has deleted the file, whose space is freed when it is closed."""
        return os.fstat(self._descriptor).st_nlink == 0


class _Ranges:
    """A remote shard, read by ranges, each with some bytes behind what was asked for."""

    is_deleted = False

    def __init__(self, fetch: Callable[[int, int], bytes]) -> None:
        self._fetch, self._first, self._data = fetch, 0, b""

    def read(self, size: int, first: int) -> bytes:
        start = first - self._first
        if start < 0 or start + size > len(self._data):
            self._data = self._fetch(first, size + _READ_AHEAD)
            self._first, start = first, 0
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
        self._until: float | None = None

    def begin(self) -> None:
        """Begin a sample: what is read until the next call shares the time of ``Storage.timeout_s``."""
        self._until = time.monotonic() + self._storage.timeout_s

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
                "changed-shard", other bytes are in this place than were indexed.
        """
        _, offset, size, check = member  # every attribute of a tuple costs time here
        assert size != SPARSE, "its bytes in the tar are not those of the file"
        opened, _, end = self._get(shard)
        # A size beyond the end is a damaged header's, and may be more than the memory.
        if offset + size > end:
            size = max(0, end - offset)
        data = opened.read(BLOCK + size, offset - BLOCK)
        if crc32(data[:BLOCK]) != check and len(data) >= BLOCK:
            raise UnreadableShardError(
                "changed-shard", f"{shard}: changed at byte {offset} since it was indexed"
            )
        return data[BLOCK:]

    def _get(self, shard: str) -> _Open:
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        self._close_removed()
        header, table, state = load_indexed(shard, self._storage)
        if self._sha256.get(shard, header.sha256) != header.sha256:
            raise UnreadableShardError("changed-shard", f"{shard}: was indexed anew during the run")
        opened = self._open_bytes(shard, header, state)
        self._open[shard] = _Open(opened, table, header.size)
        if len(self._open) > self._limit:
            self._open.popitem(last=False)[1].bytes.close()
        return self._open[shard]

    def _open_bytes(self, shard: str, header: ShardHeader, state: RemoteState) -> _Bytes:
        """Open a local shard, or the cached copy of a remote one, or its ranges if the cache has no room."""
        if not scheme(shard):
            return _File(os.open(shard, os.O_RDONLY))
        try:
            copy = open_copy(shard, self._timed, header.sha256)
            if copy is not None:
                return _File(copy)
            if scheme(shard) == PIPE:
                raise UnreadableShardError("cache-full", f"{shard}: has no place in data.cache_gb")
            # The answers of web servers tell a change; object stores are asked once.
            if scheme(shard) not in ("http", "https") and self._is_changed(shard, state):
                raise UnreadableShardError("changed-shard", f"{shard}: has changed in its store")
        except UnreadableShardError as error:
            if error.reason == "changed-shard":
                forget_index(shard, self._storage)
            raise
        return _Ranges(lambda first, size: self._fetch(shard, first, size, state))

    def _fetch(self, shard: str, first: int, size: int, state: RemoteState) -> bytes:
        """Read a range of a remote shard."""
        try:
            with attempt(shard, self._timed) as storage:
                return remote_read(shard, first, size, storage, state)
        except UnreadableShardError as error:
            # One answer may be wrong; an index is not given up for it.
            if error.reason == "changed-shard" and self._is_changed(shard, state):
                forget_index(shard, self._storage)
            raise

    def _is_changed(self, shard: str, state: RemoteState) -> bool:
        with attempt(shard, self._timed) as storage:
            return state.differs(remote_state(shard, storage))

    @property
    def _timed(self) -> Storage:
        """The settings with the end of the sample's time."""
        return replace(self._storage, until=self._until)

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
