"""Decide which ranks are dead, failed or hung, from the heartbeats alone.

A healthy rank must never be blamed, and all ranks should blame the same one, although each has its own
clock and its own board. So the rules go from certain to uncertain: a verdict that another rank announced,
a rank that reported an error, a process without heartbeats, and last a main thread that does not move.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from showo_dist.faults.beats import HOST_RANK, Board, LastBeat, Verdict


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds.

    Attributes:
        silent_s: between two heartbeats of a process.
        still_s: in one short phase of a main thread.
        long_s: in one long phase.
    """

    silent_s: float
    still_s: float
    long_s: float

    @classmethod
    def within(cls, timeout_s: float, long_s: float) -> "Timeouts":
        """Limits that leave 0.3 of ``timeout_s`` to notice a fault, write the evidence and exit."""
        return cls(0.7 * timeout_s, 0.7 * timeout_s, max(long_s, timeout_s))

    def shortened(self, silent_s: float) -> "Timeouts":
        """A short silence is enough where a rank is known to be lost, or launchers leave no more time."""
        return replace(self, silent_s=min(self.silent_s, silent_s))


def judge(board: Board, own: int, timeouts: Timeouts, now: float) -> Verdict | None:
    """The verdict of rank ``own`` at time ``now``; None while nothing is wrong."""
    return (
        _announced(board, own)
        or _failed(board, own)
        or _silent(board, own, timeouts, now)
        or _stuck(board, timeouts)
    )


def _announced(board: Board, own: int) -> Verdict | None:
    """The verdict of another rank."""
    found = (last.beat.verdict for rank, last in sorted(board.ranks.items()) if rank != own)
    return next((verdict for verdict in found if verdict is not None), None)


def _failed(board: Board, own: int) -> Verdict | None:
    """Ranks that reported an error before they left."""
    failed = {r: b for r, b in board.ranks.items() if b.beat.ended == "failed" and r != own}
    if not failed:
        return None
    texts = (f"{_name(r, b)} failed in {b.beat.place}: {b.beat.error}" for r, b in failed.items())
    return _verdict(failed, texts)


def _silent(board: Board, own: int, timeouts: Timeouts, now: float) -> Verdict | None:
    """Processes without heartbeats; a dead process, a stopped one and a dead machine cannot be told apart."""
    # A rank that cannot read the store knows nothing of the others: it blames the host of the store only.
    if now - board.contact_at > timeouts.silent_s and own != HOST_RANK:
        silent = {HOST_RANK: now - board.contact_at}
    else:
        quiet = {r: board.contact_at - last.alive_at for r, last in board.ranks.items()}
        silent = {
            rank: seconds
            for rank, seconds in quiet.items()
            if seconds > timeouts.silent_s and rank != own and not board.ranks[rank].beat.ended
        }
    texts = (
        f"{_name(rank, board.ranks[rank])} has not been heard of for {seconds:.0f} s; "
        f"it was last in {board.ranks[rank].beat.place}"
        for rank, seconds in silent.items()
    )
    return _verdict(silent, texts) if silent else None


def _stuck(board: Board, timeouts: Timeouts) -> Verdict | None:
    """Main threads that do not move while their processes live.

    All ranks go through the same phases in the same order, so the others wait for those furthest behind.
    """
    if any(last.beat.ended for last in board.ranks.values()):
        return None
    behind = {r: b for r, b in board.ranks.items() if b.beat.place.moves == board.least_moves}
    seconds = board.contact_at - board.moved_at
    may_take_long = any(last.beat.place.may_take_long for last in behind.values())
    if seconds <= (timeouts.long_s if may_take_long else timeouts.still_s):
        return None
    if len(behind) == len(board.ranks):
        place = next(iter(behind.values())).beat.place
        return Verdict((), f"no rank has moved for {seconds:.0f} s: all are in {place}")
    texts = (
        f"{_name(rank, last)} has not got beyond {last.beat.place} for {seconds:.0f} s and the others "
        "wait for it"
        for rank, last in behind.items()
    )
    return _verdict(behind, texts)


def _verdict(lost: Iterable[int], texts: Iterable[str]) -> Verdict:
    return Verdict(tuple(sorted(lost)), "; ".join(texts))


def _name(rank: int, last: LastBeat) -> str:
    return f"rank {rank} (host {last.beat.host}, pid {last.beat.pid})"
