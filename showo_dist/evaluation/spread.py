"""Work spread over ranks by index, done once, and gone on with after a stop.

The work is cut into units before anyone asks how many ranks there are: the samples of a unit are always
computed together. A batched matrix product may round differently in another batch, and a rounding can tip a
draw; fixed units make the files the same, byte for byte, on any number of ranks and after any stop.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from showo_dist.logging.progress import progress_display
from showo_dist.runtime.exits import OwnMistakeError
from showo_dist.runtime.ranks import Ranks

PARTIAL = ".*.partial"  # names of files that a killed writer left behind

Item = TypeVar("Item")


@dataclass(frozen=True)
class Unit:
    """Work done in one go, and the files that it leaves.

    Attributes:
        index: its place in the whole work.
        files: each appears under its name only when complete, so those that exist are done.
    """

    index: int
    files: tuple[Path, ...]

    @property
    def done(self) -> bool:
        return all(path.is_file() for path in self.files)


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Consecutive items, ``size`` together; the last batch holds what is left."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def share(remaining: Sequence[Item], rank: int, world: int) -> Sequence[Item]:
    """What one rank does: every item belongs to exactly one rank, counts differ by one at most."""
    return remaining[rank::world]


def spread(units: Sequence[Unit], make: Callable[[Unit], None], ranks: Ranks, what: str) -> None:
    """Have every unfinished unit made by one rank; returns when all of them are there.

    Args:
        units: in order, ``units[i].index == i``.
        make: writes the files of a unit that do not exist yet.
        ranks: those of the run; all of them call this.
        what: the work in a word, for the progress line of the first rank.

    Raises:
        ValueError, OSError, RuntimeError: what ``make`` raised, with the rank and host named.
        ValueError: all ranks are done and files are missing.
    """
    remaining = _remaining(units, ranks)
    mine = share(remaining, ranks.rank, ranks.world)
    progress = progress_display(what, len(mine), unit="batch") if ranks.is_first and mine else None
    try:
        for number, index in enumerate(mine, start=1):
            with named(ranks):
                make(units[index])
            if progress is not None:
                progress.log(number, {})
    finally:
        if progress is not None:
            progress.close()
    ranks.barrier()
    ranks.first_alone(lambda: _check_complete(units))


def _remaining(units: Sequence[Unit], ranks: Ranks) -> list[int]:
    """Unfinished units as the first rank sees them: one look, so that all ranks share out the same list."""
    told = [[unit.index for unit in units if not unit.done] if ranks.is_first else None]
    if ranks.world > 1:
        dist.broadcast_object_list(told, src=0)
    (remaining,) = told
    assert remaining is not None
    return remaining


def _check_complete(units: Sequence[Unit]) -> None:
    missing = [path for unit in units for path in unit.files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]}: not there although every rank is done ({len(missing)} files); "
            "--out must be one folder that all hosts share"
        )


@contextmanager
def named(ranks: Ranks) -> Iterator[None]:
    """Say in an error which rank of which host it happened on, where there are several.

    Raises:
        OwnMistakeError: for what a user can mend (ValueError, OSError).
        RuntimeError: for anything else, the cause chained.
    """
    try:
        yield
    except Exception as error:
        if ranks.world == 1:
            raise
        message = f"rank {ranks.rank} on {socket.gethostname()}: {error}"
        kind = OwnMistakeError if isinstance(error, ValueError | OSError) else RuntimeError
        raise kind(message) from error


def remove_leftovers(folder: Path) -> None:
    """Delete the half-written files of writers that were killed."""
    for path in folder.rglob(PARTIAL):
        path.unlink(missing_ok=True)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, compute with one thread: with several, sums are rounded as the number of cores has it."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
