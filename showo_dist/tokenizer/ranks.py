"""The processes of a run: one without a launcher, else those that torchrun or DeepSpeed started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def mean(self, value: Tensor, share: float) -> Tensor:
        """Mean over the ranks, each weighted by its ``share``; the gradient goes to ``value`` alone.

        With every rank's loss multiplied by its share, the gradients' sum over the ranks then is the
        gradient of whatever is computed from the mean.
        """
        if self.world == 1:
            return value
        mean = self.sum(value.detach() * share)
        return value + (mean - value).detach()

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the ranks, in place, without gradient."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the process group that the launcher's environment describes, and leave it at the end."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank, local_world = (
        int(os.environ.get("LOCAL_RANK", rank)),
        int(os.environ.get("LOCAL_WORLD_SIZE", world)),
    )
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(rank, world, device)
    finally:
        if world > 1:
            dist.destroy_process_group()
