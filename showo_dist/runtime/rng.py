"""Torch generators from a seed and what they are for, so that random numbers do not depend on rank or batch.

Checkpoints, goldens and published scores depend on the exact derivation: changing it changes every result.
"""

import hashlib
from collections.abc import Sequence

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
