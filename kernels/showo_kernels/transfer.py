"""Copy the integers of a plan to a device at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy 1-D tensors of integers or bools below 2**31 to ``device``: one buffer, one copy.

    On a GPU the buffer is pinned and the copy does not block: a copy from pageable memory would wait for
    everything that the GPU still has to do, which is the backward pass of the previous micro-step.

    Returns:
        int32 views of one tensor on ``device``, in the same order.
    """
    buffer = torch.cat([tensor.int() for tensor in tensors])
    if device.type == "cuda":
        buffer = buffer.pin_memory()
    return list(buffer.to(device, non_blocking=True).split([len(tensor) for tensor in tensors]))
