"""Spread units of work over the ranks; finished units are not done again.

The work is cut into units before the number of ranks is known, and the samples of a unit are always computed
in one batch. A batched matrix product may round differently in another batch, and a rounding can change a
sampled token; fixed units make the files the same, byte for byte, on any number of ranks and after any stop.
"""

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from PIL import Image

from showo_dist.logging.progress import progress_display
from showo_dist.runtime.exits import MachineError, OneRankError, exit_code_of
from showo_dist.runtime.ranks import Ranks
from showo_launch.exit_codes import USER_ERROR

Item = TypeVar("Item")


@dataclass(frozen=True)
class Unit:
    """Samples that are computed together, and the files with their results.

    Attributes:
        index: position in the whole work.
        files: images and JSON; those that are complete are done.
    """

    index: int
    files: tuple[Path, ...]

    @property
    def done(self) -> bool:
        return all(is_complete(path) for path in self.files)


def is_complete(path: Path) -> bool:
    """Whether a file exists and, as a PNG or JSON file, is whole by its checksums or its syntax.

    Files appear under their names only when complete, but a copy or a crash of the machine can cut them.
    """
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.verify()
    except Exception:  # Pillow raises unrelated types on broken data
        return False
    return path.is_file()


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut into runs of ``size`` consecutive items; the last one may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def share(remaining: Sequence[Item], rank: int, world: int) -> Sequence[Item]:
    """The items of one rank: each belongs to exactly one rank, and counts differ by one at most."""
    return remaining[rank::world]


def spread(units: Sequence[Unit], make: Callable[[Unit], None], ranks: Ranks, what: str) -> None:
    """Make every unfinished unit, each on one rank; return when all files exist.

    Args:
        units: in order, ``units[i].index == i``.
        make: writes the files of a unit that are not complete yet.
        ranks: all ranks of the run; each of them calls this.
        what: the work in a word, for the progress line of the first rank.

    Raises:
        ValueError, OSError, RuntimeError: raised by ``make``; the message names rank and host.
        ValueError: all ranks are done and files are missing.
    """
    remaining = _remaining(units, ranks)
    mine = share(remaining, ranks.rank, ranks.world)
    progress = progress_display(what, len(mine), unit="batch") if ranks.is_first and mine else None
    try:
        for number, index in enumerate(mine, start=1):
            with rank_named(ranks):
                make(units[index])
            if progress is not None:
                progress.log(number, {})
    finally:
        if progress is not None:
            progress.close()
    ranks.barrier()
    ranks.first_alone(lambda: _check_complete(units))


def _remaining(units: Sequence[Unit], ranks: Ranks) -> list[int]:
    """Indices of unfinished units, as the first rank sees them: all ranks must share out one list."""
    message = [[unit.index for unit in units if not unit.done] if ranks.is_first else None]
    if ranks.world > 1:
        dist.broadcast_object_list(message, src=0)
    (remaining,) = message
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
def rank_named(ranks: Ranks) -> Iterator[None]:
    """Add rank and host to the message of an error, when there are several ranks.

    Raises:
        OneRankError: for errors that a user can fix.
        MachineError: for any other OSError.
        RuntimeError: for any other error, which is its cause.
    """
    try:
        yield
    except Exception as error:
        if ranks.world == 1:
            raise
        message = f"rank {ranks.rank} on {socket.gethostname()}: {error}"
        kind: type[Exception] = RuntimeError
        if isinstance(error, ValueError | OSError):
            kind = OneRankError if exit_code_of(error) == USER_ERROR else MachineError
        raise kind(message) from error


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute with one thread on a CPU: with several, rounding depends on the number of cores."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
