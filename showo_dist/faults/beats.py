"""What ranks tell each other while they run, and what one of them has heard.

Where ranks leave their messages: a store of its own on rank 0, apart from the process group."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Literal, Self

import torch.distributed as dist

from showo_dist.faults.progress import Place
from showo_dist.runtime.ranks import Ranks

HOST_RANK = 0  # keeps the messages; when nothing can be read, it is the one that is gone

# How a rank left: as it should, over a user's mistake, or with an error of its own. Empty: it runs.
Ended = Literal["", "done", "mistake", "failed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the run cannot go on.

    Attributes:
        lost: ranks that died, failed or hang; empty where none could be singled out.
        text: one line.
    """

    lost: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Beat:
    """One message of a rank about itself.

    Attributes:
        count: messages so far; it stands still when the process does.
        host, pid: where the rank runs.
        place: what its main thread does.
        ended: whether and how it left.
        words: its error, where it failed.
        verdict: what it found out about others.
    """

    count: int
    host: str
    pid: int
    place: Place
    ended: Ended = ""
    words: str = ""
    verdict: Verdict | None = None

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        values = json.loads(text)
        verdict = values.pop("verdict")
        return cls(
            **{**values, "place": Place(**values["place"])},
            verdict=Verdict(tuple(verdict["lost"]), verdict["text"]) if verdict else None,
        )


@dataclass(frozen=True, slots=True)
class Heard:
    """The last beat of a rank, and when by this process's clock its count was last seen to change."""

    beat: Beat
    alive_at: float


@dataclass(frozen=True, slots=True)
class Board:
    """What this rank knows of all ranks; times are seconds of its monotonic clock.

    Attributes:
        ranks: last beat of each, this rank's own included.
        contact_at: when the beats were last read; other ranks are judged by that time, so that a rank which
            hears nothing at all accuses nobody of silence but the host of the messages, rank 0.
        moved_at: when those that are furthest behind last moved. Until then they may have been waiting for
            others themselves.
    """

    ranks: Mapping[int, Heard]
    contact_at: float
    moved_at: float

    @property
    def least_moves(self) -> int:
        """How far those are that are furthest behind."""
        return min(heard.beat.place.moves for heard in self.ranks.values())

    @classmethod
    def first(cls, beats: Mapping[int, Beat], now: float) -> Self:
        return cls({rank: Heard(beat, now) for rank, beat in beats.items()}, now, now)

    def heard(self, beats: Mapping[int, Beat], now: float) -> "Board":
        """After a look at ``now``."""
        ranks = {}
        for rank, beat in beats.items():
            before = self.ranks[rank]
            ranks[rank] = Heard(beat, now if beat.count != before.beat.count else before.alive_at)
        board = Board(ranks, now, now)
        return (
            replace(board, moved_at=self.moved_at)
            if board.least_moves == self.least_moves
            else board
        )

    def forgiven(self, now: float) -> "Board":
        """All clocks start again: this process itself stood still."""
        return Board({r: Heard(h.beat, now) for r, h in self.ranks.items()}, now, now)


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
