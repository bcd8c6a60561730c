"""Tiny models with random weights: one that reads image codes, one that reads CLIP features."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_data.mini import draw, scene
from showo_dist.config import TrainConfig, to_yaml
from showo_dist.config.model import ShowoConfig
from showo_dist.generation import Pipeline
from showo_dist.models.showo import build_showo
from tests.tiny import BITS, TEXT_TOKENS, save_showo, save_tokenizers

_CLIP_WIDTH = 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``text``, ``vq`` (4 × 4 codes for an image of 32 pixels) and ``clip`` (9 features)."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    save_tokenizers(root, resolution=32)
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=_CLIP_WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=24,
            patch_size=8,
        )
    ).save_pretrained(root / "clip")
    return root


def _save(folder: Path, encoders: Path, clip: bool) -> Path:
    torch.manual_seed(1)
    config = TrainConfig()
    config.model.showo = ShowoConfig(
        llm_model_path=None,
        llm_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "initializer_range": 0.3,  # large enough for answers to depend on the prompt
        },
        tokenizer_path=str(encoders / "text"),
        llm_vocab_size=TEXT_TOKENS,
        codebook_size=2**BITS,
        vocab_size=TEXT_TOKENS + 10 + 2**BITS + 1,
        num_vq_tokens=16,
        w_clip_vit=clip,
        clip_dim=_CLIP_WIDTH,
        clip_tokens=9,
    )
    config.model.vq_model.vq_model_name = str(encoders / "vq")
    config.model.vq_model.downsample = 8
    config.model.clip_model_name = str(encoders / "clip")
    config.dataset.und_type = "llava_tuning"
    config.dataset.preprocessing.resolution = config.dataset.params.resolution = 32
    config.dataset.preprocessing.max_seq_length = 24
    config.training.generation_timesteps = 3
    config.training.guidance_scale = 1.5
    save_showo(build_showo(config.model.showo), config.model.showo, folder)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> Path:
    """A checkpoint of a model that reads image codes."""
    return _save(tmp_path_factory.mktemp("vq") / "checkpoint-000001", encoders, clip=False)


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> Path:
    """A checkpoint of a model that reads CLIP features."""
    return _save(tmp_path_factory.mktemp("clip") / "checkpoint-000001", encoders, clip=True)


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> Pipeline:
    return Pipeline.load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def clip_pipeline(clip_checkpoint: Path) -> Pipeline:
    return Pipeline.load(clip_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Five different images of the mini world."""
    return [draw(scene(0, index)) for index in range(5)]
