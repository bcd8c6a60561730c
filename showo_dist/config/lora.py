"""Section ``lora``: small trained matrices beside frozen ones, for one small GPU."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, through `peft`): the weights that a run starts from stay as they are."""

    rank: int = 0
    """Rank of the adapters; 0: no LoRA, all weights are trained."""
    alpha: float | None = None
    """The adapters' product is scaled by `alpha / rank`; null: by 1."""
    dropout: float = 0.0
    """Dropout on the adapters' input, 0 to below 1. Above 0 the curve depends on how samples are
    spread over ranks."""
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    )
    """Names of the blocks' linear layers that get an adapter."""
    train_embeddings: bool = False
    """Also train the whole embedding table."""
    train_head: bool = False
    """Also train the whole output head."""
    train_projector: bool = True
    """Also train the CLIP projector, where there is one."""
