"""Samples on their way between processes: all their tensors in one buffer per type.

Each tensor that torch sends alone costs a file in shared memory and a connection to its sender, which is more
work than reading an encoded sample.


One loader per rank: whole micro-batches over all flows, in an order that only positions decide.

A micro-step of all ranks takes ``world · batch`` consecutive positions of each flow; rank r takes every
``world``-th of them, from the r-th on. So the positions reached are the whole state, and any other number
of ranks or workers can go on from them.
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


class _Slot(NamedTuple):
    """Where a tensor belongs: the sample's flow and number, its attribute, and its shape."""

    flow: str
    number: int
    name: str
    shape: torch.Size


@dataclass(frozen=True, slots=True)
class Parcel:
    """Samples without their tensors, and the tensors end to end."""

    samples: dict[str, list[Sample]]
    slots: dict[torch.dtype, list[_Slot]]
    flat: dict[torch.dtype, Tensor]


def packed(samples: Mapping[str, list[Sample]]) -> Parcel:
    """The samples of each flow, ready to be sent."""
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
    return Parcel(bare, slots, {dtype: _joined(group) for dtype, group in parts.items()})


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts end to end, in shared memory from the start: torch would copy any other tensor there."""
    size = sum(part.numel() for part in parts)
    storage = torch.UntypedStorage._new_shared(size * parts[0].element_size())
    flat = torch.empty(0, dtype=parts[0].dtype).set_(storage, 0, (size,), (1,))
    return torch.cat(parts, out=flat)


def unpacked(parcel: Parcel) -> dict[str, list[Sample]]:
    """The samples as they were; their tensors are views of the buffers."""
    for dtype, slots in parcel.slots.items():
        parts = parcel.flat[dtype].split([slot.shape.numel() for slot in slots])
        for slot, part in zip(slots, parts, strict=True):
            setattr(parcel.samples[slot.flow][slot.number], slot.name, part.view(slot.shape))
    return parcel.samples


# A flow's name and a position of its stream.
Request = tuple[str, int]


@dataclass(slots=True)
class MicroBatch:
    """What one rank computes on in one micro-step: the samples of every flow, and what was skipped."""

    samples: dict[str, list[Sample]]
    skipped: list[Skipped] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes, all tensors travel together."""
        return _arrived, (packed(self.samples), self.skipped)

    def pin_memory(self) -> "MicroBatch":
        """Move all tensors to pinned memory (called by the data loader)."""
        for samples in self.samples.values():
            for sample in samples:
                sample.pin_memory()
        return self


def outlive_stop_signals(worker: int) -> None:
    """Ignore in a data worker what asks a run to stop: its rank still needs it for the step under way.

    Launchers and terminals signal all processes. A worker ends when its rank tells it to, or does.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_rank_says_so, args=(os.getppid(),), daemon=True).start()


def _end_when_the_rank_says_so(rank: int) -> None:
    """multiprocessing ends workers with SIGTERM and waits for them: one from the process ``rank`` counts."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
        pass
    os._exit(0)


def _arrived(parcel: Parcel, skipped: list[Skipped]) -> MicroBatch:
    return MicroBatch(unpacked(parcel), skipped)


class MicroBatches(Sampler[list[Request]]):
    """The requests of each micro-step of one rank, without end."""

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
            yield [
                (spec.flow, base[spec.flow] + self.world * j + self.rank)
                for spec in self.specs
                for j in range(spec.batch)
            ]
            micro_step += 1

    def positions_after(self, micro_steps: int) -> dict[str, int]:
        """Each flow's next position once every rank has done ``micro_steps``."""
        return {
            spec.flow: self.start.get(spec.flow, 0) + micro_steps * self.world * spec.batch
            for spec in self.specs
        }


class FlowSamples(Dataset[Sample | Skipped]):
    """All flows as one map from (flow, position) to a sample."""

    def __init__(self, specs: Sequence[FlowSpec]) -> None:
        self.sources = {spec.flow: Source(spec) for spec in specs}

    def __getitem__(self, request: Request) -> Sample | Skipped:
        flow, position = request
        return self.sources[flow][position]


class Collate:
    """Sorts the samples of a micro-step by flow; every flow is there, if need be with an empty list."""

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
    """Iterates over :class:`MicroBatch` without end; see :func:`build_loader`."""

    def __init__(
        self, batches: MicroBatches, data: FlowSamples, loader: StatefulDataLoader
    ) -> None:
        self._batches, self._data, self._loader = batches, data, loader

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self._loader)

    def positions_after(self, micro_steps: int) -> dict[str, int]:
        """The state to save after ``micro_steps`` of this loader: each flow's next position."""
        return self._batches.positions_after(micro_steps)

    def epoch_samples(self) -> dict[str, int]:
        """How many samples one epoch of each flow has."""
        return {flow: len(source) for flow, source in self._data.sources.items()}


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
    """The loader of one rank.

    ``start_positions`` (default 0 for each flow) is what :meth:`Loader.positions_after` gave, in this run or
    another one with any number of ranks and workers. ``prefetch`` is in micro-batches per worker.

    Raises:
        FileNotFoundError, ValueError: as :class:`showo_data.sources.Source`; two flows of one name.
    """
    flows = [spec.flow for spec in specs]
    if len(set(flows)) < len(flows):
        raise ValueError(f"flows must have different names: {flows}")
    batches = MicroBatches(specs, rank, world, start_positions or {})
    data = FlowSamples(specs)
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that newer torch deprecates; nobody here can mend that.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            data,
            batch_sampler=batches,
            collate_fn=Collate(flows),
            worker_init_fn=outlive_stop_signals,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch if num_workers else None,
            multiprocessing_context=multiprocessing_context if num_workers else None,
        )
    return Loader(batches, data, loader)
