"""A tiny checkpoint with random weights, and a tiny mini world."""

from pathlib import Path

import pytest
import torch

from showo_data.mini.writing import MiniSettings, write_mini
from showo_dist.config import TrainConfig, to_yaml
from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import build_showo
from tests.tiny import BITS, TEXT_TOKENS, save_showo, save_tokenizers


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini world of 12 held-out images and 2 prompts per category."""
    folder = tmp_path_factory.mktemp("world")
    write_mini(folder, MiniSettings(images=4, texts=4, validation=12, prompts_per_tag=2))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoint-000003`` of a run that never trained."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("run")
    folder = root / "checkpoint-000003"
    save_tokenizers(root, resolution=64)
    config = TrainConfig()
    config.model.showo = ShowoConfig(
        llm_model_path=None,
        llm_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        tokenizer_path=str(root / "text"),
        llm_vocab_size=TEXT_TOKENS,
        codebook_size=2**BITS,
        vocab_size=TEXT_TOKENS + 10 + 2**BITS + 1,
        num_vq_tokens=64,
    )
    config.model.vq_model.vq_model_name = str(root / "vq")
    config.model.vq_model.downsample = 8
    config.dataset.preprocessing.resolution = config.dataset.params.resolution = 64
    config.dataset.preprocessing.max_seq_length = 32
    config.training.generation_timesteps = 3
    config.training.guidance_scale = 1.5
    save_showo(build_showo(config.model.showo), config.model.showo, folder)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder
