"""The number format of the forward pass."""

import torch


def autocast(setting: str, device: torch.device) -> torch.autocast:
    """The autocast context of ``auto``, ``bf16`` or ``fp32``; ``auto`` is bf16 where that is fast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(setting, device))


def uses_bf16(setting: str, device: torch.device) -> bool:
    """Whether ``auto``, ``bf16`` or ``fp32`` means bf16 on this device."""
    return setting == "bf16" or (setting == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
