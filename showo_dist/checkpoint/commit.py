"""What the ranks agree upon while a checkpoint is written in the background.

From an empty folder aside to a visible checkpoint: what rank 0 does, and what the others look at."""

import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from showo_dist.checkpoint.folders import MANIFEST, TENSORS, FileEntry, manifest_text, publish, sync
from showo_dist.checkpoint.parts import Part
from showo_dist.checkpoint.slices import TensorIndex

Result = TypeVar("Result")


class SaveError(OSError):
    """A checkpoint could not be written; the message is one line that names rank, host and reason."""


class Peers:
    """The ranks of a run, joined by process groups of their own: training's is never touched.

    Args:
        timeout_s: how long the slowest rank may take for its part of a checkpoint.
    """

    def __init__(self, timeout_s: float) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        limit = timedelta(seconds=timeout_s)
        alone = self.world == 1
        self._writing = None if alone else dist.new_group(backend="gloo", timeout=limit)
        self._training = None if alone else dist.new_group(backend="gloo", timeout=limit)

    def together(self, action: Callable[[], Result]) -> list[Result]:
        """Do something on every rank; in the writing thread. Returns the results of all.

        Raises:
            SaveError: the same on all ranks, if it failed on any of them.
        """
        mine: tuple[Result | None, str | None]
        try:
            mine = action(), None
        except Exception as error:  # whatever it is, the others must not wait for this rank
            mine = None, f"rank {self.rank} on {socket.gethostname()}: {one_line(error)}"
        outcomes = [mine]
        if self._writing is not None:
            outcomes = [mine] * self.world
            dist.all_gather_object(outcomes, mine, group=self._writing)
        problem = next((problem for _, problem in outcomes if problem), None)
        if problem is not None:
            raise SaveError(problem)
        return [result for result, _ in outcomes]  # type: ignore[misc]

    def all_agree(self, flag: bool) -> bool:
        """Whether it is true on every rank; in the training thread."""
        if self._training is None:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MIN, group=self._training)
        return bool(flags)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def open_aside(aside: Path, texts: Mapping[str, str]) -> None:
    """Make the folder, with the small files that are known at the start.

    Raises:
        OSError: it cannot be written.
    """
    aside.mkdir(parents=True)
    for name, text in texts.items():
        _write_text(aside / name, text)


def see(aside: Path) -> None:
    """Make sure that this rank has the folder that rank 0 made.

    Raises:
        OSError: it has not.
    """
    if not aside.is_dir():
        raise OSError(
            f"{aside}: not visible here, experiment.output_dir must be a folder that all hosts share"
        )


def complete(aside: Path, target: Path, parts: Sequence[Part]) -> None:
    """Add what describes the parts of all ranks, have everything on the disk, and make it visible.

    Raises:
        OSError: a file cannot be written, or is not there as its rank wrote it.
    """
    index = TensorIndex.of(placed for part in parts for placed in part.placed)
    _write_text(aside / TENSORS, index.to_json())
    files = {name: entry for part in parts for name, entry in part.files.items()}
    for name, entry in files.items():
        size = (aside / name).stat().st_size
        if size != entry.bytes:
            raise OSError(f"{aside / name}: {size} bytes seen by rank 0, {entry.bytes} written")
    small = (path for path in aside.iterdir() if path.name not in files)
    files |= {path.name: FileEntry.of(path) for path in small}
    _write_text(aside / MANIFEST, manifest_text(files))
    sync(aside)
    publish(aside, target)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    sync(path)
