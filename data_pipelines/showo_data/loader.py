"""The data loader of one rank: micro-batches of all flows, in an order that positions alone decide.

In one micro-step all ranks together take ``world * batch`` consecutive positions of each flow; rank r takes
every ``world``-th of them, from the r-th on. The next position of each flow is therefore the whole state of a
loader, and a run may resume from it with any number of ranks and workers.
"""

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from showo_data.samples import TENSORS, FlowSpec, Sample, Skipped
from showo_data.sources import Source

# The name of a flow, and a position of its stream.
Request = tuple[str, int]


@dataclass(slots=True)
class MicroBatch:
    """The samples of one rank for one micro-step, by flow, and the samples that were skipped."""

    samples: dict[str, list[Sample]]
    skipped: list[Skipped] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all tensors in one buffer per dtype; see :func:`_packed`."""
        return _unpacked_batch, (_packed(self.samples), self.skipped)

    def pin_memory(self) -> "MicroBatch":
        """Move all tensors to pinned memory (called by the data loader)."""
        for samples in self.samples.values():
            for sample in samples:
                sample.pin_memory()
        return self


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
    """Group the samples of a micro-step by flow; a flow without samples has an empty list."""

    def __init__(self, flows: Sequence[str]) -> None:
        self.flows = tuple(flows)

    def __call__(self, items: list[Sample | Skipped]) -> MicroBatch:
        batch = MicroBatch({flow: [] for flow in self.flows})
        for item in items:
            if isinstance(item, Skipped):
                batch.skipped.append(item)
            else:
                batch.samples[item.flow].append(item)
        return batch


class Loader:
    """Endless iterable of :class:`MicroBatch`; see :func:`build_loader`."""

    def __init__(self, batches: MicroBatches, loader: StatefulDataLoader) -> None:
        self._batches, self._loader = batches, loader

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self._loader)

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
    pin_memory: bool = False,
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
        pin_memory: copy tensors to pinned memory, for a GPU.
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
            pin_memory=pin_memory,
            # torch refuses these two without workers.
            prefetch_factor=prefetch if num_workers else None,
            multiprocessing_context=multiprocessing_context if num_workers else None,
        )
    return Loader(batches, loader)


def outlive_stop_signals(worker: int) -> None:
    """Ignore stop signals in a data worker, since its rank still needs it to finish the step.

    Launchers and terminals signal all processes. A worker ends when its rank sends SIGTERM or ends.
    """
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


@dataclass(frozen=True, slots=True)
class _Parcel:
    """Samples without their tensors, and all their tensors end to end in one buffer per dtype."""

    samples: dict[str, list[Sample]]
    slots: dict[torch.dtype, list[_Slot]]
    flat: dict[torch.dtype, Tensor]


def _packed(samples: Mapping[str, list[Sample]]) -> _Parcel:
    """Put the tensors of all samples into one buffer per dtype, to be sent to another process.

    A tensor that torch sends by itself costs a file in shared memory and a connection to the sender, which
    is more work than reading an encoded sample.
    """
    slots: dict[torch.dtype, list[_Slot]] = {}
    parts: dict[torch.dtype, list[Tensor]] = {}
    for flow, group in samples.items():
        for number, sample in enumerate(group):
            for name in TENSORS:
                tensor = getattr(sample, name)
                if tensor is not None:
                    slot = _Slot(flow, number, name, tensor.shape)
                    slots.setdefault(tensor.dtype, []).append(slot)
                    parts.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
    nothing: dict[str, Any] = dict.fromkeys(TENSORS)
    bare = {
        flow: [replace(sample, **nothing) for sample in group] for flow, group in samples.items()
    }
    return _Parcel(bare, slots, {dtype: _joined(group) for dtype, group in parts.items()})


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate the parts in shared memory, which saves the copy there that torch makes when sending."""
    size = sum(part.numel() for part in parts)
    storage = torch.UntypedStorage._new_shared(size * parts[0].element_size())
    flat = torch.empty(0, dtype=parts[0].dtype).set_(storage, 0, (size,), (1,))
    return torch.cat(parts, out=flat)


def _unpacked(parcel: _Parcel) -> dict[str, list[Sample]]:
    """Give the samples their tensors back, as views of the buffers."""
    for dtype, slots in parcel.slots.items():
        parts = parcel.flat[dtype].split([slot.shape.numel() for slot in slots])
        for slot, part in zip(slots, parts, strict=True):
            setattr(parcel.samples[slot.flow][slot.number], slot.name, part.view(slot.shape))
    return parcel.samples


def _unpacked_batch(parcel: _Parcel, skipped: list[Skipped]) -> MicroBatch:
    return MicroBatch(_unpacked(parcel), skipped)
