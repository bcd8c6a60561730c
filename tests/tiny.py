"""Tiny tokenizers with random weights, for tests that need a whole model."""

from pathlib import Path

from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from showo_dist.sequences.train_tokenizer import train

TEXT_TOKENS = 300
BITS = 4


def save_tokenizers(root: Path, resolution: int) -> None:
    """Folders ``text`` and ``vq`` (8 pixels per code) in ``root``; seed torch before."""
    words = ["USER: what is shown? ASSISTANT: a red circle"] * 8
    train(iter(words), TEXT_TOKENS).save_pretrained(root / "text")
    stack = {"channels": 8, "multipliers": [1, 1, 1, 1], "res_blocks": [0, 0, 0, 1]}
    config = MAGVITv2Config(
        resolution=resolution,
        bits=BITS,
        norm_groups=4,
        encoder=StackConfig(**stack),
        decoder=StackConfig(**stack),
    )
    MAGVITv2(config).save_pretrained(root / "vq")
