"""Samples on their way between processes: all their tensors in one buffer per type.

Each tensor that torch sends alone costs a file in shared memory and a connection to its sender, which is more
work than reading an encoded sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from showo_data.samples import TENSORS, Sample


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
