"""Where ranks leave their messages: a store of its own on rank 0, apart from the process group."""

import os
from datetime import timedelta

import torch.distributed as dist

from showo_dist.faults.beats import Beat
from showo_dist.faults.judge import HOST_RANK
from showo_dist.runtime.ranks import Ranks


class Channel:
    """This rank's connection; making it is collective.

    Args:
        ranks: this process among the others; the process group exists.
        first: this rank's first message.
        timeout_s: of a connection, in seconds.
    """

    def __init__(self, ranks: Ranks, first: Beat, timeout_s: float) -> None:
        self._own = f"beat/{ranks.rank}"
        self._keys = [f"beat/{rank}" for rank in range(ranks.world)]
        self._store = _shared_store(ranks, timedelta(seconds=timeout_s))
        self.send(first)
        ranks.barrier()  # everybody's first message is there

    def send(self, beat: Beat) -> None:
        """Replace this rank's message.

        Raises:
            torch.distributed.DistError: the host cannot be reached.
        """
        self._store.set(self._own, beat.encode())

    def read(self) -> dict[int, Beat]:
        """The last message of every rank, this one included.

        Raises:
            torch.distributed.DistError: the host cannot be reached.
        """
        return dict(enumerate(map(Beat.decode, self._store.multi_get(self._keys))))


def _shared_store(ranks: Ranks, timeout: timedelta) -> dist.TCPStore:
    """On a port that the machine of rank 0 has free, told through the process group."""
    host, port = os.environ["MASTER_ADDR"], [0]
    if ranks.rank == HOST_RANK:
        store = dist.TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        port = [store.port]
        dist.broadcast_object_list(port, src=HOST_RANK)
        return store
    dist.broadcast_object_list(port, src=HOST_RANK)
    return dist.TCPStore(host, port[0], is_master=False, timeout=timeout)
