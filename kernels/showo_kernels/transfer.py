"""Copies from the host to a device that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PINNING = {"cuda"}  # kinds of devices that copy from pinned memory without the host waiting


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to ``device`` without waiting for what the device still has to do.

    A copy from pageable memory would wait: usually for the backward pass of the previous micro-step.
    """
    if device.type in PINNING and tensor.is_cpu:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy 1-D tensors of integers or bools below 2**31 to ``device``: one buffer, one copy.

    Returns:
        int32 views of one tensor on ``device``, in the same order.
    """
    buffer = torch.cat([tensor.int() for tensor in tensors])
    return list(to_device(buffer, device).split([len(tensor) for tensor in tensors]))
