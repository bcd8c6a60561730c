"""A small set of image shards and a very small tokenizer."""

from pathlib import Path

import pytest
import torch

from showo_data.mini.writing import MiniSettings, write_mini
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from showo_dist.tokenizer.objective import initialise

# Two levels, so 16×16 codes of 4 bits for 32×32 pixels.
TINY = {
    "resolution": 32,
    "bits": 4,
    "norm_groups": 2,
    "encoder": {"channels": 8, "multipliers": [1, 2], "res_blocks": [0, 1]},
    "decoder": {"channels": 8, "multipliers": [1, 2], "res_blocks": [1, 1]},
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train-00000{0,1,2}.tar of 20 images each."""
    folder = tmp_path_factory.mktemp("mini")
    settings = MiniSettings(images=60, texts=1, validation=1, prompts_per_tag=1, shard_size=20)
    write_mini(folder, settings)
    return folder


@pytest.fixture(scope="session")
def tiny_config() -> MAGVITv2Config:
    stacks = {name: StackConfig(**TINY[name]) for name in ("encoder", "decoder")}
    return MAGVITv2Config(**{**TINY, **stacks})


@pytest.fixture
def tiny(tiny_config: MAGVITv2Config) -> MAGVITv2:
    torch.manual_seed(3)
    model = MAGVITv2(tiny_config)
    initialise(model)
    return model.eval()
