"""Open shards, a bounded number of them."""

import os
from collections import OrderedDict

from showo_data.shards.index import Member, ShardTable, load_table


class OpenShards:
    """Reads members by byte offset; keeps at most ``limit`` shards open, the most recently used.

    Nothing is opened before it is asked for, so an instance may travel to a worker process. Reads do not
    move a shared file position: handles that a fork has copied are safe to use.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._open: OrderedDict[str, tuple[int, ShardTable]] = OrderedDict()

    def table(self, shard: str) -> ShardTable:
        """The table of samples of ``shard``."""
        return self._get(shard)[1]

    def read(self, shard: str, member: Member) -> bytes:
        """The bytes of one member; fewer than ``member.size`` where the shard ends early."""
        return os.pread(self._get(shard)[0], member.size, member.offset)

    def _get(self, shard: str) -> tuple[int, ShardTable]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        self._open[shard] = os.open(shard, os.O_RDONLY), load_table(shard)
        if len(self._open) > self._limit:
            os.close(self._open.popitem(last=False)[1][0])
        return self._open[shard]

    def close(self) -> None:
        """Close every shard."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __getstate__(self) -> dict[str, int]:
        return {"_limit": self._limit}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["_limit"])  # type: ignore[misc]
