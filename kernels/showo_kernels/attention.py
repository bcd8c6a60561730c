"""One signature for every attention backend."""

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
    """What a backend prepares once per micro-batch and every layer shares."""

    def __len__(self) -> int:
        """Tokens of the row the plan was built for."""

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Attention of one layer; shapes as in :func:`attend`."""


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
    """Prepare ``visibility`` for a backend.

    Args:
        backend: ``flex``, ``flash``, ``native``, ``sdpa`` or ``dense``.
        visibility: the packed row; the plan serves every layer of one micro-batch. All but ``flex``
            and ``dense`` are planned on the CPU: leave the visibility there and name the ``device``,
            and nothing waits for the GPU.
        device: where attention will run; the visibility's device when None.

    Raises:
        ValueError: if ``backend`` is none of these, ``flex`` gets a row whose length is no multiple
            of 128, or ``native`` cannot run here.
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
    """Attention over a packed row, differentiable.

    Args:
        query_BHTD: B is 1; T is the length of the plan's row.
        key_BHTD, value_BHTD: H may be a divisor of the query's H (grouped-query attention).
        plan: from :func:`build_plan`, on the same device.
        scale: factor of the scores, usually ``D ** -0.5``.

    Returns:
        (1, H, T, D) in the query's dtype.
    """
    assert query_BHTD.shape[0] == 1, "documents are packed into one row"
    assert query_BHTD.shape[2] == len(plan), "the plan was built for another row"
    return plan.attend(query_BHTD, key_BHTD, value_BHTD, scale)
