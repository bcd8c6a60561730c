"""The attention backends: one signature for all, the dense reference, and the choice of the fastest.

Letters: B batch (always 1: a packed row), H heads, T tokens of the row, D head width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from showo_kernels.cpu import compiled
from showo_kernels.cpu.attention import DTYPES, NativePlan
from showo_kernels.flash import FlashPlan
from showo_kernels.flex import FlexPlan
from showo_kernels.planned import PlanHandle, Recomputed, attend_by_handle
from showo_kernels.runs import without_tails
from showo_kernels.sdpa import SdpaPlan
from showo_kernels.varlen import find_varlen
from showo_kernels.visibility import Visibility


@dataclass(frozen=True)
class DensePlan(Recomputed):
    """The attention visibility as a boolean (T, T) matrix, rows are queries."""

    visible_TT: Tensor

    @classmethod
    def build(cls, visibility: Visibility, device: torch.device) -> DensePlan:
        """Evaluate the rule for all pairs: T² bytes."""
        return cls(visibility.to(device).dense())

    def __len__(self) -> int:
        return self.visible_TT.shape[0]

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute masked softmax attention in fp32 or better; see :func:`showo_kernels.attend`."""
        dtype = torch.promote_types(query_BHTD.dtype, torch.float32)
        groups = query_BHTD.shape[1] // key_BHTD.shape[1]
        key_BHTD = key_BHTD.to(dtype).repeat_interleave(groups, dim=1)
        value_BHTD = value_BHTD.to(dtype).repeat_interleave(groups, dim=1)
        score_BHTT = query_BHTD.to(dtype) @ key_BHTD.transpose(-1, -2) * scale
        score_BHTT = score_BHTT.masked_fill(~self.visible_TT, float("-inf"))
        return (score_BHTT.softmax(-1) @ value_BHTD).to(query_BHTD.dtype)


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
    backend: str,
    visibility: Visibility,
    device: torch.device | str | None = None,
    read_rows: Tensor | None = None,
) -> AttentionPlan:
    """Build the plan of a backend, once per micro-batch.

    Args:
        backend: ``flex``, ``flash``, ``native``, ``sdpa`` or ``dense``.
        visibility: of the packed row. All backends but ``flex`` and ``dense`` plan on the CPU: keep
            the visibility there and pass ``device``, so that planning does not wait for the GPU.
        device: where attention will run; the visibility's device when None.
        read_rows: rows whose output is used, all when None. ``flash`` lets others attend to less where that
            changes nothing else; see :func:`showo_kernels.runs.without_tails`.

    Raises:
        ValueError: an unknown ``backend``; a row whose length is no multiple of 128 for ``flex``; or
            ``native`` cannot run on this machine.
    """
    if backend not in BUILDERS:
        raise ValueError(f"attention backend is {backend!r}: allowed are {', '.join(BUILDERS)}")
    where = visibility.document_T.device if device is None else torch.device(device)
    if backend == "flash" and read_rows is not None:
        visibility = without_tails(visibility, read_rows)
    return BUILDERS[backend](visibility, where)


def attend(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    plan: AttentionPlan | PlanHandle,
    *,
    scale: float,
) -> Tensor:
    """Compute attention over a packed row; differentiable.

    Args:
        query_BHTD: (1, H, T, D), T the length of the plan's row.
        key_BHTD, value_BHTD: (1, H, T, D); H may be a divisor of the query's (grouped-query attention).
        plan: from :func:`build_plan`, on the same device; inside a compiled block what
            :func:`compilable` makes of it.
        scale: factor of the scores before softmax, usually ``D ** -0.5``.

    Returns:
        (1, H, T, D) in the query's dtype.
    """
    assert query_BHTD.shape[0] == 1, "documents are packed into one row"
    if isinstance(plan, PlanHandle):
        return attend_by_handle(query_BHTD, key_BHTD, value_BHTD, plan, scale)
    assert query_BHTD.shape[2] == len(plan), "the plan was built for another row"
    return plan.attend(query_BHTD, key_BHTD, value_BHTD, scale)


def compilable(plan: AttentionPlan) -> AttentionPlan | PlanHandle:
    """Return what a block under ``torch.compile`` gets in place of the plan.

    ``flex`` is made to be traced, and its block mask has the same shapes for every batch of one capacity; all
    others become one operator.
    """
    return plan if isinstance(plan, FlexPlan) else PlanHandle.of(plan)  # type: ignore[arg-type]


log = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)


def _flash_obstacle(
    device: torch.device, dtype: torch.dtype | None, head_width: int | None
) -> str | None:
    """Return why ``flash`` cannot run, or None if it can."""
    if device.type != "cuda":
        return f"flash has no kernel for {device.type}"
    if dtype is not None and dtype not in HALF:
        return f"flash computes in bfloat16 or float16, not {dtype}"
    if head_width is not None and (head_width % 8 or head_width > 256):
        return f"flash computes heads whose width is a multiple of 8 up to 256, not {head_width}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "flash needs compute capability 8.0 or higher"
    if find_varlen() is None:
        return "flash found neither torch's FlashAttention nor the flash_attn package"
    return None


def _flex_obstacle(device: torch.device, head_width: int | None) -> str | None:
    """Return why ``flex`` cannot train, or None if it can."""
    if device.type != "cuda":
        return f"flex has no backward on {device.type}"
    if find_spec("triton") is None:
        return "flex needs triton to compile its kernel"
    if head_width is not None and head_width < 16:
        return f"flex computes heads of width 16 or more, not {head_width}"
    return None


def _native_obstacle(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Return why ``native`` cannot run, or None if it can; compiles it at first use."""
    if device.type != "cpu":
        return f"native has no kernel for {device.type}"
    if dtype is not None and dtype not in DTYPES:
        return f"native computes in float32 or bfloat16, not {dtype}"
    obstacle = compiled.obstacle()
    return None if obstacle is None else f"native: {obstacle}"


def _automatic(
    device: torch.device, dtype: torch.dtype | None, head_width: int | None
) -> tuple[str, str]:
    """Return the fastest backend that can train on ``device``, and the reason."""
    if device.type != "cuda":
        no_native = _native_obstacle(device, dtype)
        if no_native is None:
            return "native", "our kernel for CPUs with AVX-512 and bf16"
        return "sdpa", no_native
    no_flash = _flash_obstacle(device, dtype, head_width)
    varlen = find_varlen()
    if no_flash is None and varlen is not None:
        return "flash", f"variable-length attention through {varlen[0]}"
    no_flex = _flex_obstacle(device, head_width)
    if no_flex is None:
        return "flex", str(no_flash)
    log.warning(
        "=== NO FAST ATTENTION KERNEL ON %s: %s; %s. Falling back to sdpa, run by run: "
        "expect a much slower step. ===",
        device,
        no_flash,
        no_flex,
    )
    return "sdpa", f"{no_flash}; {no_flex}"


def select_backend(
    name: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    head_width: int | None = None,
) -> tuple[str, str]:
    """Resolve the setting ``model.attention``; see docs/kernels.md for the order of ``auto``.

    Args:
        name: ``auto``, or the name of a backend.
        device: where attention will run.
        dtype: of query, key and value, if known; FlashAttention exists for 16-bit floats only.
        head_width: D, if known; FlashAttention and FlexAttention lack kernels for some.

    Returns:
        The backend's name and the reason for it, for the log.

    Raises:
        ValueError: ``name`` is unknown, or is ``flash`` or ``native`` and cannot run on ``device``.
    """
    device = torch.device(device)
    if name == "auto":
        return _automatic(device, dtype, head_width)
    if name not in BUILDERS:
        raise ValueError(f"attention is {name!r}: allowed are auto, {', '.join(BUILDERS)}")
    obstacle = None
    if name == "flash":
        obstacle = _flash_obstacle(device, dtype, head_width)
    elif name == "native":
        obstacle = _native_obstacle(device, dtype)
    if obstacle is not None:
        others = "auto, flex or sdpa" if name == "flash" else "auto or sdpa"
        raise ValueError(f"attention is {name!r}, but {obstacle}: choose {others}")
    if device.type == "cuda" and name in ("sdpa", "dense"):
        log.warning("=== attention is %r on a GPU: far slower than flex or flash. ===", name)
    if device.type != "cuda" and name == "flex":
        log.warning("=== attention is 'flex' on %s: it cannot train there. ===", device.type)
    return name, "named in the config"
