"""Number formats, and torch generators that depend on neither rank nor batch.

Generators come from a seed and their purpose. Checkpoints, goldens and published scores depend on the exact
derivation: changing it changes every result.
"""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch


def image_generator(seed: int, indices: Sequence[int], device: torch.device) -> torch.Generator:
    """The generator of one image, or of one batch of answers.

    Args:
        seed: of the run, not negative.
        indices: identify the image, as its place in a list; not negative.
        device: of the generator; CPU and GPU generators give different numbers.
    """
    (state,) = np.random.SeedSequence([seed, *indices]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))


def named_generator(seed: int, name: str) -> torch.Generator:
    """The CPU generator of something with a name, as the initial values of one weight."""
    return torch.Generator().manual_seed(hashed_seed(f"{seed}/{name}".encode()))


def hashed_seed(data: bytes) -> int:
    """A seed of 63 bits from any bytes, for generators and :func:`torch.manual_seed`."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1


def autocast(setting: str, device: torch.device) -> torch.autocast:
    """The autocast context of ``auto``, ``bf16`` or ``fp32``; ``auto`` is bf16 where that is fast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(setting, device))


def exact_convolutions(allow_tf32: bool = False) -> AbstractContextManager[None]:
    """A context in which cuDNN convolves fp32 in fp32, on NVIDIA GPUs.

    By default it does so in TF32, which changes some image codes: those made here and those of shards that
    were encoded on another kind of GPU would differ.
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=allow_tf32)


def uses_bf16(setting: str, device: torch.device) -> bool:
    """Whether ``auto``, ``bf16`` or ``fp32`` means bf16 on this device."""
    return setting == "bf16" or (setting == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
