"""Tiny tokenizers with random weights, for tests that need a whole model."""

from pathlib import Path

from safetensors.torch import save_file

from showo_dist.config.model import ShowoConfig
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.folder import CONFIG_NAME, SAFETENSORS_NAME
from showo_dist.models.weights.pretrained import config_json
from showo_dist.sequences.train_tokenizer import train

TEXT_TOKENS = 300
BITS = 4


def save_tokenizers(root: Path, resolution: int) -> None:
    """Write the folders ``text`` and ``vq`` (8 pixels per code) to ``root``; seed torch before the call."""
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


def save_showo(model: ShowO, showo: ShowoConfig, folder: Path) -> None:
    """Write a model as a folder in the released format: ``config.json`` and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(config_json(showo, model))
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / SAFETENSORS_NAME, metadata={"format": "pt"})
