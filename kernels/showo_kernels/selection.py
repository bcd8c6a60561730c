"""Choose the attention backend for a device."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch

from showo_kernels.attention import BUILDERS
from showo_kernels.cpu import compiled
from showo_kernels.cpu.attention import DTYPES
from showo_kernels.flash import find_varlen

log = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)


def _flash_obstacle(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Return why ``flash`` cannot run, or None if it can."""
    if device.type != "cuda":
        return f"flash has no kernel for {device.type}"
    if dtype is not None and dtype not in HALF:
        return f"flash computes in bfloat16 or float16, not {dtype}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "flash needs compute capability 8.0 or higher"
    if find_varlen() is None:
        return "flash found neither torch's varlen_attn nor the flash_attn package"
    return None


def _flex_obstacle(device: torch.device) -> str | None:
    """Return why ``flex`` cannot train, or None if it can."""
    if device.type != "cuda":
        return f"flex has no backward on {device.type}"
    if find_spec("triton") is None:
        return "flex needs triton to compile its kernel"
    return None


def _native_obstacle(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Return why ``native`` cannot run, or None if it can; compiles it at first use."""
    if device.type != "cpu":
        return f"native has no kernel for {device.type}"
    if dtype is not None and dtype not in DTYPES:
        return f"native computes in float32 or bfloat16, not {dtype}"
    obstacle = compiled.obstacle()
    return None if obstacle is None else f"native: {obstacle}"


def _automatic(device: torch.device, dtype: torch.dtype | None) -> tuple[str, str]:
    """Return the fastest backend that can train on ``device``, and the reason."""
    if device.type != "cuda":
        no_native = _native_obstacle(device, dtype)
        if no_native is None:
            return "native", "our kernel for CPUs with AVX-512 and bf16"
        return "sdpa", no_native
    no_flash = _flash_obstacle(device, dtype)
    varlen = find_varlen()
    if no_flash is None and varlen is not None:
        return "flash", f"variable-length FlashAttention through {varlen[0]}"
    no_flex = _flex_obstacle(device)
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
    name: str, device: torch.device | str, dtype: torch.dtype | None = None
) -> tuple[str, str]:
    """Resolve the setting ``model.attention``; see docs/kernels.md for the order of ``auto``.

    Args:
        name: ``auto``, or the name of a backend.
        device: where attention will run.
        dtype: of query, key and value, if known; FlashAttention exists for 16-bit floats only.

    Returns:
        The backend's name and the reason for it, for the log.

    Raises:
        ValueError: ``name`` is unknown, or is ``flash`` or ``native`` and cannot run on ``device``.
    """
    device = torch.device(device)
    if name == "auto":
        return _automatic(device, dtype)
    if name not in BUILDERS:
        raise ValueError(f"attention is {name!r}: allowed are auto, {', '.join(BUILDERS)}")
    obstacles = {"flash": _flash_obstacle, "native": _native_obstacle}
    obstacle = obstacles[name](device, dtype) if name in obstacles else None
    if obstacle is not None:
        others = "auto, flex or sdpa" if name == "flash" else "auto or sdpa"
        raise ValueError(f"attention is {name!r}, but {obstacle}: choose {others}")
    if device.type == "cuda" and name in ("sdpa", "dense"):
        log.warning("=== attention is %r on a GPU: far slower than flex or flash. ===", name)
    if device.type != "cuda" and name == "flex":
        log.warning("=== attention is 'flex' on %s: it cannot train there. ===", device.type)
    return name, "named in the config"
