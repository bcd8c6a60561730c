"""The data loader of one rank: micro-batches of all flows, in an order that positions alone decide.

In one micro-step all ranks together take ``world * batch`` consecutive positions of each flow; rank r takes
every ``world``-th of them, from the r-th on. The next position of each flow is therefore the whole state of a
loader, and a run may resume from it with any number of ranks and workers.
"""

import ctypes
import logging
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from showo_data.samples import TENSORS, FlowSpec, Sample, Skipped
from showo_data.sources import Source

log = logging.getLogger(__name__)
T = TypeVar("T")

_SHARED = "/dev/shm"  # where Linux keeps shared memory
_SPARE = 0.25  # part of it that is left to others, such as NCCL
# The name of a flow, and a position of its stream.
Request = tuple[str, int]


@dataclass(slots=True)
class MicroBatch:
    """The samples of one rank for one micro-step, by flow, and the samples that were skipped."""

    samples: dict[str, list[Sample]]
    skipped: list[Skipped] = field(default_factory=list)


class MicroBatches(Sampler[list[Request]]):
    """Endless sampler: the requests of one rank for each micro-step."""

    def __init__(
        self, specs: Sequence[FlowSpec], rank: int, world: int, start: Mapping[str, int]
    ) -> None:
        assert 0 <= rank < world, (rank, world)
        self.specs, self.rank, self.world = specs, rank, world
        self.start = dict(start)

    def __iter__(self) -> Iterator[list[Request]]:
        micro_step = 0
        while True:
            base = self.positions_after(micro_step)
            # Ranks take turns, so a micro-step of all ranks is the same set of positions for any split of it.
            yield [
                (spec.flow, base[spec.flow] + self.world * j + self.rank)
                for spec in self.specs
                for j in range(spec.batch)
            ]
            micro_step += 1

    def positions_after(self, micro_steps: int) -> dict[str, int]:
        """Return each flow's next position after ``micro_steps`` of every rank."""
        return {
            spec.flow: self.start.get(spec.flow, 0) + micro_steps * self.world * spec.batch
            for spec in self.specs
        }


class FlowSamples(Dataset[Sample | Skipped]):
    """Map-style dataset over all flows: (flow, position) → sample."""

    def __init__(self, specs: Sequence[FlowSpec]) -> None:
        self.sources = {spec.flow: Source(spec) for spec in specs}

    def __getitem__(self, request: Request) -> Sample | Skipped:
        flow, position = request
        return self.sources[flow][position]


class Collate:
    """Group the samples of a micro-step by flow; a flow without samples has an empty list.

    A worker packs the batch here. If multiprocessing pickled it, in the thread that sends, an error would be
    printed there and lost, and the rank would wait for the batch without end.
    """

    def __init__(self, flows: Sequence[str]) -> None:
        self.flows = tuple(flows)

    def __call__(self, items: list[Sample | Skipped]) -> "MicroBatch | _Parcel":
        batch = MicroBatch({flow: [] for flow in self.flows})
        for item in items:
            if isinstance(item, Skipped):
                batch.skipped.append(item)
            else:
                batch.samples[item.flow].append(item)
        return batch if get_worker_info() is None else _packed(batch)


class DeadWorkerError(OSError):
    """A data worker died: the kernel killed it, for example because memory ran out."""


class Loader:
    """Endless iterable of :class:`MicroBatch`; see :func:`build_loader`."""

    def __init__(self, batches: MicroBatches, loader: StatefulDataLoader) -> None:
        self._batches, self._loader = batches, loader
        self._workers: Sequence[Any] = ()
        self._warned = os.environ.get("LOCAL_RANK", "0") != "0"  # one line for each host

    def __iter__(self) -> Iterator[MicroBatch]:
        """Iterate. The first batch, which starts the workers, has to be read by the main thread.

        Raises:
            OSError: the workers cannot start.
            DeadWorkerError: a worker died; the message has its process id and how it ended.
        """
        batches = self._start()
        self._workers = getattr(batches, "_workers", [])
        while True:
            yield _read(self._workers, lambda: self._next(batches))

    def waiting(self, wait: Callable[[], T]) -> T:
        """Call ``wait``, in which the main thread waits for another one that reads.

        Raises:
            DeadWorkerError: a worker died; the reading thread may wait for it without end.
        """
        return _read(self._workers, wait)

    def _next(self, batches: Iterator["MicroBatch | _Parcel"]) -> MicroBatch:
        batch = next(batches)
        if isinstance(batch, MicroBatch):
            return batch
        self._warn_of_small_memory(batch)
        return batch.opened()

    def _start(self) -> Iterator["MicroBatch | _Parcel"]:
        try:
            batches = _interruptibly(lambda: iter(self._loader))
        except OSError as error:
            raise OSError(
                f"data workers cannot start: {error.strerror}; make room in memory and in {_SHARED} (docker "
                "run --shm-size, or --ipc=host), or set dataset.params.num_workers=0"
            ) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DeadWorkerError(f"data worker died at its start: {_reason(error)}") from error
        _raise_only_while_reading()
        return batches

    def _warn_of_small_memory(self, parcel: "_Parcel") -> None:
        if self._warned or not parcel.copied:
            return
        self._warned = True
        ahead = self._loader.num_workers * self._loader.prefetch_factor + 1
        wanted = ahead * parcel.copied * int(os.environ.get("LOCAL_WORLD_SIZE", 1)) / (1 - _SPARE)
        log.warning(
            f"{_SHARED} has no room for a batch of {_mb(parcel.copied)} ({_room()}), so workers copy batches "
            f"through pipes, which is slower; give it {_mb(wanted)} (docker run --shm-size, or --ipc=host), "
            "or lower dataset.params.num_workers"
        )

    def positions_after(self, micro_steps: int) -> dict[str, int]:
        """Return the state to save after ``micro_steps`` of this loader: each flow's next position."""
        return self._batches.positions_after(micro_steps)


def build_loader(
    specs: Sequence[FlowSpec],
    *,
    rank: int = 0,
    world: int = 1,
    start_positions: Mapping[str, int] | None = None,
    num_workers: int = 0,
    prefetch: int = 2,
    multiprocessing_context: str | None = None,
) -> Loader:
    """Build the loader of one rank.

    Args:
        specs: the flows, each with its samples per micro-step.
        rank: of ``world``.
        world: ranks that share the positions.
        start_positions: next position of each flow (default 0), from :meth:`Loader.positions_after` of any
            run, whatever its number of ranks and workers.
        num_workers: processes that read; 0: this one.
        prefetch: micro-batches that each worker reads ahead.
        multiprocessing_context: how workers are started; None: the platform's default.

    Raises:
        OSError, ValueError: as :class:`showo_data.sources.Source`.
        ValueError: two flows have the same name.
    """
    flows = [spec.flow for spec in specs]
    if len(set(flows)) < len(flows):
        raise ValueError(f"flows must have different names: {flows}")
    batches = MicroBatches(specs, rank, world, start_positions or {})
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that newer versions of torch deprecate.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            FlowSamples(specs),
            batch_sampler=batches,
            collate_fn=Collate(flows),
            worker_init_fn=outlive_stop_signals,
            num_workers=num_workers,
            # torch refuses these two without workers.
            prefetch_factor=prefetch if num_workers else None,
            multiprocessing_context=multiprocessing_context if num_workers else None,
        )
    return Loader(batches, loader)


def end_with_parent(number: int) -> None:
    """Let Linux send this process the signal ``number`` when its parent ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def outlive_stop_signals(worker: int) -> None:
    """Ignore stop signals in a data worker, since its rank still needs it to finish the step.

    Launchers and terminals signal all processes. A worker ends when its rank sends SIGTERM or ends.
    """
    # Torch looks between two batches only; until then, a worker holds open what its rank had on a GPU.
    end_with_parent(signal.SIGKILL)
    # Ctrl-C, and Slurm's warning before the time limit.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # Only sigwaitinfo gives the sender of a signal, so SIGTERM is blocked and a thread waits for it.
    threading.Thread(target=_end_on_signal_from, args=(os.getppid(),), daemon=True).start()


def _end_on_signal_from(rank: int) -> None:
    """End this process at a SIGTERM of the process ``rank``: multiprocessing ends workers that way."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
        pass
    os._exit(0)


class _Slot(NamedTuple):
    """The place of a tensor: flow and number of its sample, name of the attribute, shape."""

    flow: str
    number: int
    name: str
    shape: torch.Size


_is_reading = False


def _raise_only_while_reading() -> None:
    """Let the death of a worker interrupt the main thread only while it reads.

    Torch's handler of SIGCHLD raises an error wherever the main thread is: in the middle of a save, or while
    another error is reported. It is needed while reading, which half a message of a dead worker blocks.
    """
    raising = signal.getsignal(signal.SIGCHLD)
    if not callable(raising) or raising.__module__ == __name__:  # no workers, or done before
        return
    if threading.current_thread() is not threading.main_thread():
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if _is_reading:
            raising(number, frame)

    signal.signal(signal.SIGCHLD, handle)


def _interruptibly(read: Callable[[], T]) -> T:
    """Call ``read``; until it has returned, the death of a worker may raise torch's error.

    It would be raised in the main thread, so that another thread that reads is not interrupted.
    """
    global _is_reading
    if threading.current_thread() is not threading.main_thread():
        return read()
    try:
        _is_reading = True
        return read()
    finally:
        _is_reading = False


def _read(workers: Sequence[Any], read: Callable[[], T]) -> T:
    """Call ``read``, which reads from workers.

    Raises:
        DeadWorkerError: instead of the many errors, of a pipe, a socket or torch, that a dead worker causes.
    """

    def read_from_living() -> T:
        # Only from now on does a death interrupt; one before shows here.
        if not all(worker.is_alive() for worker in workers):
            raise EOFError("its batches are lost")
        return read()

    try:
        return _interruptibly(read_from_living)
    except DeadWorkerError:
        raise  # of the thread that was waited for
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if dead := _dead(workers):
            raise DeadWorkerError(f"data worker died ({dead}): {_reason(error)}") from error
        raise


def _reason(error: BaseException) -> str:
    return str(error).strip(" .")


def _dead(workers: Sequence[Any]) -> str:
    """How the workers that died ended; empty if all live."""
    ended = wait([worker.sentinel for worker in workers], timeout=1) if workers else []
    dead = [worker for worker in workers if worker.sentinel in ended]
    for worker in dead:
        worker.join(10)  # the system closes the files of a process shortly before it is dead
    text = ", ".join(f"pid {worker.pid}, exit code {worker.exitcode}" for worker in dead)
    if any(worker.exitcode == -signal.SIGKILL for worker in dead):
        text += (
            ": killed, perhaps by the kernel for want of memory: lower dataset.params.num_workers"
        )
    return text


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A pickled micro-batch, on its way from a worker to its rank.

    Attributes:
        data: what :func:`_pickled` returned.
        copied: size of the tensors in ``data`` in bytes; 0 if they are in shared memory.
    """

    data: bytes
    copied: int

    def opened(self) -> MicroBatch:
        """The batch; its tensors are views of one buffer per dtype."""
        batch, slots, buffers = pickle.loads(self.data)
        for dtype, buffer in buffers.items():
            flat = torch.from_numpy(buffer) if isinstance(buffer, np.ndarray) else buffer
            parts = flat.view(dtype).split([slot.shape.numel() for slot in slots[dtype]])
            for slot, part in zip(slots[dtype], parts, strict=True):
                sample = batch.samples[slot.flow][slot.number]
                setattr(sample, slot.name, part.view(slot.shape))
        return batch


def _packed(batch: MicroBatch) -> _Parcel:
    """Pack a batch with its tensors in shared memory, or in the parcel itself where that has no room."""
    try:
        return _Parcel(_pickled(batch, _shared), 0)
    except (OSError, RuntimeError):  # no room, or no file descriptor left
        size = sum(
            t.nbytes
            for samples in batch.samples.values()
            for s in samples
            for t in _tensors(s).values()
        )
        return _Parcel(_pickled(batch, _copied), size)


def _pickled(batch: MicroBatch, join: Callable[[list[Tensor]], Tensor | np.ndarray]) -> bytes:
    """Pickle a batch with its tensors end to end in one buffer per dtype.

    A tensor that torch sends by itself costs a file in shared memory and a connection to the sender, which
    is more work than reading an encoded sample.
    """
    slots: dict[torch.dtype, list[_Slot]] = {}
    parts: dict[torch.dtype, list[Tensor]] = {}
    for flow, group in batch.samples.items():
        for number, sample in enumerate(group):
            for name, tensor in _tensors(sample).items():
                slots.setdefault(tensor.dtype, []).append(_Slot(flow, number, name, tensor.shape))
                parts.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
    nothing: dict[str, Any] = dict.fromkeys(TENSORS)
    samples = {f: [replace(s, **nothing) for s in group] for f, group in batch.samples.items()}
    buffers = {dtype: join(group) for dtype, group in parts.items()}
    return bytes(ForkingPickler.dumps((replace(batch, samples=samples), slots, buffers)))


def _tensors(sample: Sample) -> dict[str, Tensor]:
    """The tensors of a sample by attribute."""
    found = {name: getattr(sample, name) for name in TENSORS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _shared(parts: list[Tensor]) -> Tensor:
    """Concatenate the parts in shared memory, which saves the copy there that torch makes when sending.

    Raises:
        OSError, RuntimeError: there is no room.
    """
    size = sum(part.numel() for part in parts)
    needed = size * parts[0].element_size()
    disk = os.statvfs(_SHARED)
    if disk.f_bavail * disk.f_frsize - needed < _SPARE * disk.f_blocks * disk.f_frsize:
        raise OSError(f"{_SHARED}: no room for {needed} bytes")
    storage = torch.UntypedStorage._new_shared(needed)
    flat = torch.empty(0, dtype=parts[0].dtype).set_(storage, 0, (size,), (1,))
    return torch.cat(parts, out=flat)


def _copied(parts: list[Tensor]) -> np.ndarray:
    """Concatenate the parts as bytes; numpy arrays are pickled by value, tensors are not."""
    return torch.cat(parts).view(torch.uint8).numpy()


def _room() -> str:
    """The free space of the shared memory, for a message."""
    disk = os.statvfs(_SHARED)
    return f"{_mb(disk.f_bavail * disk.f_frsize)} of {_mb(disk.f_blocks * disk.f_frsize)} are free"


def _mb(size: float) -> str:
    return f"{size / 2**20:.1f} MB"
