"""Heartbeats: what each rank reports about itself, and what one rank knows of all of them.

They are exchanged through a key-value store on rank 0 that is separate from the process group, so that they
still arrive when a collective hangs.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Literal, Self

import torch.distributed as dist

from showo_dist.faults.progress import Place
from showo_dist.runtime.ranks import Ranks

HOST_RANK = 0  # hosts the store; when the store cannot be read, this rank is the lost one

# How a rank left: normally, because of a user's mistake, or with an error. Empty while it runs.
Ended = Literal["", "done", "user_error", "failed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the run cannot continue.

    Attributes:
        lost: ranks that died, failed or hang; empty if no rank could be singled out.
        text: one line for the user.
    """

    lost: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat of a rank.

    Attributes:
        count: heartbeats so far; it does not grow while the process is stopped.
        host, pid: where the rank runs.
        place: what its main thread does.
        ended: whether and how it left.
        error: type and first line of its error, if it failed.
        verdict: its verdict on other ranks, if it has one.
    """

    count: int
    host: str
    pid: int
    place: Place
    ended: Ended = ""
    error: str = ""
    verdict: Verdict | None = None

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        """Undo :meth:`encode`."""
        values = json.loads(text)
        verdict = values.pop("verdict")
        return cls(
            **{**values, "place": Place(**values["place"])},
            verdict=Verdict(tuple(verdict["lost"]), verdict["text"]) if verdict else None,
        )


@dataclass(frozen=True, slots=True)
class LastBeat:
    """The last heartbeat of a rank, and when, by this process's clock, its count was last seen to grow."""

    beat: Beat
    alive_at: float


@dataclass(frozen=True, slots=True)
class Board:
    """What this rank knows of all ranks; times are seconds of its monotonic clock.

    Attributes:
        ranks: last heartbeat of each rank, this one included.
        contact_at: when the heartbeats were last read. Silence is measured up to this time, so that a rank
            which cannot read them blames only the host of the store, rank 0.
        moved_at: when the ranks that are furthest behind last moved. Before that time they may have been
            waiting for others.
    """

    ranks: Mapping[int, LastBeat]
    contact_at: float
    moved_at: float

    @property
    def least_moves(self) -> int:
        """Phases entered by the ranks that are furthest behind."""
        return min(last.beat.place.moves for last in self.ranks.values())

    @classmethod
    def first(cls, beats: Mapping[int, Beat], now: float) -> Self:
        """The board after the first read."""
        return cls({rank: LastBeat(beat, now) for rank, beat in beats.items()}, now, now)

    def updated(self, beats: Mapping[int, Beat], now: float) -> "Board":
        """The board after a read at ``now``."""
        ranks = {}
        for rank, beat in beats.items():
            before = self.ranks[rank]
            is_alive = beat.count != before.beat.count
            ranks[rank] = LastBeat(beat, now if is_alive else before.alive_at)
        board = Board(ranks, now, now)
        return (
            replace(board, moved_at=self.moved_at)
            if board.least_moves == self.least_moves
            else board
        )

    def restarted(self, now: float) -> "Board":
        """The board with all times set to ``now``, for a process that was itself stopped for a while."""
        return Board.first({rank: last.beat for rank, last in self.ranks.items()}, now)


class Channel:
    """This rank's connection to the store; creating it is collective.

    Args:
        ranks: this process among the others; the process group exists.
        first: this rank's first heartbeat.
        timeout_s: of a connection, in seconds.
    """

    def __init__(self, ranks: Ranks, first: Beat, timeout_s: float) -> None:
        self._own = f"beat/{ranks.rank}"
        self._keys = [f"beat/{rank}" for rank in range(ranks.world)]
        self._store = _shared_store(ranks, timedelta(seconds=timeout_s))
        self.send(first)
        ranks.barrier()  # from here on every rank's first heartbeat can be read

    def send(self, beat: Beat) -> None:
        """Replace this rank's heartbeat.

        Raises:
            torch.distributed.DistError: the store cannot be reached.
        """
        self._store.set(self._own, beat.encode())

    def read(self) -> dict[int, Beat]:
        """The last heartbeat of every rank, this one included.

        Raises:
            torch.distributed.DistError: the store cannot be reached.
        """
        return dict(enumerate(map(Beat.decode, self._store.multi_get(self._keys))))


def _shared_store(ranks: Ranks, timeout: timedelta) -> dist.TCPStore:
    """A store on a free port of rank 0's machine; the port is broadcast through the process group."""
    host, port = os.environ["MASTER_ADDR"], [0]
    if ranks.rank == HOST_RANK:
        store = dist.TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        port = [store.port]
        dist.broadcast_object_list(port, src=HOST_RANK)
        return store
    dist.broadcast_object_list(port, src=HOST_RANK)
    return dist.TCPStore(host, port[0], is_master=False, timeout=timeout)
