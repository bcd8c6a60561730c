"""What the ranks agree upon while a checkpoint is written in the background."""

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

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
