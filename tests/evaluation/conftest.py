"""A tiny checkpoint with random weights, and a tiny mini world."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from showo_data.mini.writing import MiniSettings, write_mini
from showo_dist.config import TrainConfig, to_yaml
from showo_dist.config.model import ShowoConfig
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from showo_dist.models.pretrained import build_showo, save_showo
from showo_dist.sequences.text import END_OF_TEXT

_TEXT = 300
_BITS = 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini world of 12 held-out pictures and 2 prompts per category."""
    folder = tmp_path_factory.mktemp("world")
    write_mini(folder, MiniSettings(pictures=4, texts=4, validation=12, prompts_per_tag=2))
    return folder


def _save_text_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TEXT,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["USER: what is shown? ASSISTANT: a red circle"] * 8, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    ).save_pretrained(folder)


def _save_image_tokenizer(folder: Path) -> None:
    stack = {"channels": 8, "multipliers": [1, 1, 1, 1], "res_blocks": [0, 0, 0, 1]}
    config = MAGVITv2Config(
        resolution=64,
        bits=_BITS,
        norm_groups=4,
        encoder=StackConfig(**stack),
        decoder=StackConfig(**stack),
    )
    MAGVITv2(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoint-000003`` of a run that never trained."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("run")
    folder = root / "checkpoint-000003"
    _save_text_tokenizer(root / "text")
    _save_image_tokenizer(root / "vq")
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
        llm_vocab_size=_TEXT,
        codebook_size=2**_BITS,
        vocab_size=_TEXT + 10 + 2**_BITS + 1,
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
