"""Section ``inference``: what the published demo scripts take on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class InferenceConfig:
    """One call of the inference tools. Several texts in one are separated by ``' *** '``."""

    mode: Literal["t2i", "inpainting", "extrapolation", "mmu"] = "t2i"
    """What to do."""
    prompt: str | None = None
    """Prompt of inpainting; prompts of extrapolation, one per step."""
    image_path: str | None = None
    """Picture to inpaint or extrapolate."""
    inpainting_mask_path: str | None = None
    """Mask picture: white is drawn anew."""
    extra_direction: str | None = None
    """Directions of extrapolation, one per step: left, right, up, down."""
    offset: int = 0
    """Code columns (rows) by which the extrapolated half is larger than half a picture."""
    mmu_image_root: str | None = None
    """Folder with the pictures that are asked about."""
    question: str | None = None
    """Questions asked about each picture."""
    top_k: int = 1
    """Answer tokens are sampled among the k most likely; 1: always the most likely."""
    temperature: float = 1.0
    """Temperature of answer sampling, above 0."""
    max_new_tokens: int = 100
    """Longest answer in tokens."""
    samples: int = 1
    """Pictures per prompt, 1 or more."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; each gives every picture once more. A seed and the picture's index decide its random numbers."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the transformer; `auto`: bf16 on a GPU that has it, fp32 on a CPU."""
