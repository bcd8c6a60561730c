"""Who is dead, failed or hung: decided from what a rank has heard, and from nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from showo_dist.faults.beats import HOST_RANK, Board, Heard, Verdict


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    Attributes:
        silent_s: a process may send no message for so long.
        still_s: a main thread may stay in one short phase for so long.
        long_s: and in a long one.
    """

    silent_s: float
    still_s: float
    long_s: float

    @classmethod
    def within(cls, timeout_s: float, long_s: float) -> "Patience":
        """What leaves time to notice, write down and exit before ``timeout_s`` is over."""
        return cls(0.7 * timeout_s, 0.7 * timeout_s, max(long_s, timeout_s))

    def alarmed(self, silent_s: float) -> "Patience":
        """Once a collective has failed, a short silence tells who is gone."""
        return replace(self, silent_s=min(self.silent_s, silent_s))


def judge(board: Board, own: int, patience: Patience, now: float) -> Verdict | None:
    """What rank ``own`` makes of what it has heard until ``now``; None while nothing is wrong."""
    return (
        _announced(board, own)
        or _failed(board, own)
        or _silent(board, own, patience, now)
        or _stuck(board, patience)
    )


def _announced(board: Board, own: int) -> Verdict | None:
    """What another rank has found out before."""
    found = (heard.beat.verdict for rank, heard in sorted(board.ranks.items()) if rank != own)
    return next((verdict for verdict in found if verdict is not None), None)


def _failed(board: Board, own: int) -> Verdict | None:
    failed = {r: h for r, h in board.ranks.items() if h.beat.ended == "failed" and r != own}
    if not failed:
        return None
    texts = (f"{_name(r, h)} failed in {h.beat.place}: {h.beat.words}" for r, h in failed.items())
    return _verdict(failed, texts)


def _silent(board: Board, own: int, patience: Patience, now: float) -> Verdict | None:
    """Processes that send nothing. A dead one, a stopped one and a dead machine look alike."""
    if now - board.contact_at > patience.silent_s and own != HOST_RANK:
        silent = {HOST_RANK: now - board.contact_at}
    else:
        quiet = {r: board.contact_at - h.alive_at for r, h in board.ranks.items()}
        silent = {
            rank: seconds
            for rank, seconds in quiet.items()
            if seconds > patience.silent_s and rank != own and not board.ranks[rank].beat.ended
        }
    texts = (
        f"{_name(rank, board.ranks[rank])} has not been heard of for {seconds:.0f} s; "
        f"it was last in {board.ranks[rank].beat.place}"
        for rank, seconds in silent.items()
    )
    return _verdict(silent, texts) if silent else None


def _stuck(board: Board, patience: Patience) -> Verdict | None:
    """Main threads that do not move: of ranks that all do the same, who is behind is waited for."""
    if any(heard.beat.ended for heard in board.ranks.values()):
        return None
    last = {r: h for r, h in board.ranks.items() if h.beat.place.moves == board.least_moves}
    seconds = board.contact_at - board.moved_at
    may_take_long = any(heard.beat.place.may_take_long for heard in last.values())
    if seconds <= (patience.long_s if may_take_long else patience.still_s):
        return None
    if len(last) == len(board.ranks):
        place = next(iter(last.values())).beat.place
        return Verdict((), f"no rank has moved for {seconds:.0f} s: all are in {place}")
    texts = (
        f"{_name(rank, heard)} has not got beyond {heard.beat.place} for {seconds:.0f} s and the others "
        "wait for it"
        for rank, heard in last.items()
    )
    return _verdict(last, texts)


def _verdict(lost: Iterable[int], texts: Iterable[str]) -> Verdict:
    return Verdict(tuple(sorted(lost)), "; ".join(texts))


def _name(rank: int, heard: Heard) -> str:
    return f"rank {rank} (host {heard.beat.host}, pid {heard.beat.pid})"
