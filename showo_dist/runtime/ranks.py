"""The ranks of a run: a single process, or those that torchrun or DeepSpeed started."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from showo_dist.runtime.exits import OneRankError

# Timeout of collectives for commands whose ranks wait for the slowest one only at the end, perhaps for hours.
PATIENCE_S = 24 * 3600.0


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints to the user."""
        return self.rank == 0

    def mean(self, value: Tensor, share: float) -> Tensor:
        """Mean over the ranks, weighted by each rank's ``share``; gradients reach this rank's ``value`` only.

        If every rank multiplies its loss by its share, the gradients' sum over the ranks is the gradient of
        the loss of the mean.
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

    def first_alone(self, action: Callable[[], object]) -> None:
        """Call ``action`` on rank 0 while the others wait; collective.

        Raises:
            ValueError, OSError: raised on rank 0, and so on every rank.
        """
        outcome: list[Exception | None] = [None]
        if self.is_first:
            try:
                action()
            except (ValueError, OSError) as error:
                outcome = [error]
        if self.world > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[0] is not None:
            raise outcome[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


def default_device(local_rank: int = 0) -> torch.device:
    """The GPU of this rank, or the CPU of a machine without one; raises as :func:`check_unused_gpu`."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    check_unused_gpu()
    return torch.device("cpu")


def check_unused_gpu(devices: Path = Path("/dev")) -> None:
    """Check that this machine has no GPU that torch cannot use, unless the environment asks for the CPU.

    Args:
        devices: where the driver puts ``nvidia0``, ``nvidia1``, …

    Raises:
        ValueError: it has one; the message names the driver and the torch build.
    """
    wants_cpu = (
        os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        or os.environ.get("DS_ACCELERATOR") == "cpu"
    )
    if wants_cpu or not any(devices.glob("nvidia[0-9]*")):
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    raise ValueError(
        f"host {socket.gethostname()} has an NVIDIA GPU (driver {_driver()}), but torch {torch.__version__}, "
        f"built for {build}, cannot use it: install a torch build that this driver supports, or a newer "
        "driver; CUDA_VISIBLE_DEVICES=-1 runs on the CPU"
    )


def _driver() -> str:
    with suppress(OSError):
        found = re.search(r"\b\d+(\.\d+)+\b", Path("/proc/driver/nvidia/version").read_text())
        return found[0] if found else "unknown"
    return "not loaded"


def _from_environment() -> Ranks:
    """The rank and device that the launcher's environment variables give; rank 0 of 1 without a launcher.

    Raises:
        ValueError: there are fewer GPUs than ranks.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    device = default_device(local_rank)
    if device.type == "cuda":
        if local_rank >= (gpus := torch.cuda.device_count()):
            raise OneRankError(
                f"rank {rank} (host {socket.gethostname()}): LOCAL_RANK is {local_rank}, but this rank sees "
                f"{gpus} GPUs; lower slots in the hostfile, --num_gpus, --nproc-per-node or RANKS_PER_NODE, "
                "or let each rank see all GPUs of its host (CUDA_VISIBLE_DEVICES; srun --gpu-bind=none)"
            )
        torch.cuda.set_device(device)
    return Ranks(rank, world, device)


def _share_cores(world: int) -> None:
    """Split this machine's cores among its ranks, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    ranks_here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(ranks_here)))


@contextmanager
def joined(timeout_s: float | None = None, always_group: bool = False) -> Iterator[Ranks]:
    """Join the process group that the launcher's environment describes, and leave it at the end.

    After an error, ranks that are several do not leave it, but end with their process.

    Args:
        timeout_s: of collectives; None is torch's default.
        always_group: create a group of one rank without a launcher too; DeepSpeed needs a group.

    Raises:
        ValueError: this rank has no GPU of its own, or torch cannot use it.
    """
    ranks = _from_environment()
    _share_cores(ranks.world)
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    if ranks.world > 1:
        dist.init_process_group(backend, timeout=timeout)
    elif always_group:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
    try:
        yield ranks
    except BaseException:
        # With NCCL, destroying a group waits for the other ranks, and they for this one in a collective.
        if ranks.world == 1:
            _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
