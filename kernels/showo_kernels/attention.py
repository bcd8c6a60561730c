"""The attention backends behind one signature: build a plan per micro-batch, attend in every layer.

Letters: B batch (always 1: a packed row), H heads, T tokens of the row, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from showo_kernels.cpu.attention import NativePlan
from showo_kernels.dense import DensePlan
from showo_kernels.flash import FlashPlan
from showo_kernels.flex import FlexPlan
from showo_kernels.sdpa import SdpaPlan
from showo_kernels.visibility import Visibility


class AttentionPlan(Protocol):
    """The attention visibility of one micro-batch in a backend's own form; all layers share it."""

    def __len__(self) -> int:
        """Tokens of the row that the plan was built for."""

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention of one layer; shapes as in :func:`attend`."""


BUILDERS: dict[str, Callable[[Visibility, torch.device], AttentionPlan]] = {
    "flex": FlexPlan.build,
    "flash": FlashPlan.build,
    "native": NativePlan.build,
    "sdpa": SdpaPlan.build,
    "dense": DensePlan.build,
}


def build_plan(
    backend: str, visibility: Visibility, device: torch.device | str | None = None
) -> AttentionPlan:
    """Build the plan of a backend, once per micro-batch.

    Args:
        backend: ``flex``, ``flash``, ``native``, ``sdpa`` or ``dense``.
        visibility: of the packed row. All backends but ``flex`` and ``dense`` plan on the CPU: keep
            the visibility there and pass ``device``, so that planning does not wait for the GPU.
        device: where attention will run; the visibility's device when None.

    Raises:
        ValueError: an unknown ``backend``; a row whose length is no multiple of 128 for ``flex``; or
            ``native`` cannot run on this machine.
    """
    if backend not in BUILDERS:
        raise ValueError(f"attention backend is {backend!r}: allowed are {', '.join(BUILDERS)}")
    where = visibility.document_T.device if device is None else torch.device(device)
    return BUILDERS[backend](visibility, where)


def attend(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
) -> Tensor:
    """Compute attention over a packed row; differentiable.

    Args:
        query_BHTD: (1, H, T, D), T the length of the plan's row.
        key_BHTD, value_BHTD: (1, H, T, D); H may be a divisor of the query's (grouped-query attention).
        plan: from :func:`build_plan`, on the same device.
        scale: factor of the scores before softmax, usually ``D ** -0.5``.

    Returns:
        (1, H, T, D) in the query's dtype.
    """
    assert query_BHTD.shape[0] == 1, "documents are packed into one row"
    assert query_BHTD.shape[2] == len(plan), "the plan was built for another row"
    return plan.attend(query_BHTD, key_BHTD, value_BHTD, scale)
