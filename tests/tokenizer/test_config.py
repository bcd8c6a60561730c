"""Mistakes in a tokenizer's config are reported before anything is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from showo_dist.config.loader import load
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.ranks import Ranks
from showo_dist.tokenizer.__main__ import main
from showo_dist.tokenizer.batches import training_batches
from showo_dist.tokenizer.config import AdamWConfig, TokenizerConfig
from showo_dist.tokenizer.objective import learning_rate

MINI = Path(__file__).parents[2] / "configs" / "mini" / "tokenizer.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.entropy=0.1", "loss.entropy = 0.1: unknown key; nearest known: loss."),
        ("loss.l1=-1", "loss.l1 = -1.0: expected 0 or more"),
        ("loss.codebook=all", "loss.codebook = 'all': expected one of bits, joint"),
        ("model.bits=30", "model.bits=30: 1 to 20"),
        ("model.resolution=60", "model.resolution=60: must be a multiple of 8"),
        ("training.batch_size=0", "training.batch_size = 0: expected 1 or more"),
        ("optimizer.max_grad_norm=-1", "optimizer.max_grad_norm = -1.0: expected a number above 0"),
        ("optimizer.beta1=1.5", "optimizer.beta1 = 1.5: expected 0 to below 1"),
        ("dataset.streams=0", "dataset.streams = 0: expected 1 or more"),
        ("model.norm_groups=0", "model.norm_groups=0: 1 or more is needed"),
        ("model.image_channels=1", "model.image_channels=1: images have 3"),
        ("training.mixed_precision=fp8", "expected one of auto, bf16, fp32"),
        ("dataset.shards=null", "dataset.shards = None: expected the path"),
    ],
)
def test_mistake_is_named(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load([f"config={MINI}", override], TokenizerConfig)
    assert message in str(error.value)


def test_missing_shards_are_one_line(tmp_path: Path) -> None:
    arguments = [f"config={MINI}", "dataset.shards=nowhere/a-{0..3}.tar"]
    with pytest.raises(OSError, match=r"'nowhere/a-0\.tar' does not exist") as error:
        main([*arguments, f"experiment.output_dir={tmp_path}", "wandb.mode=disabled"])
    assert "\n" not in str(error.value)


def test_batch_that_the_ranks_cannot_share_is_named() -> None:
    config = load([f"config={MINI}"], TokenizerConfig)
    with pytest.raises(ValueError, match=r"training.batch_size = 16: expected a multiple of 3"):
        training_batches(
            replace(config, training=replace(config.training, batch_size=16)),
            Ranks(0, 3, torch.device("cpu")),
            0,
        )


def test_mini_tokenizer_fits_the_mini_world() -> None:
    config = load([f"config={MINI}"], TokenizerConfig)
    assert config.model.resolution == 64 and config.model.codes_per_image == 64
    model = MAGVITv2(config.model)
    assert model.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 64)


def test_learning_rate_warms_up_and_falls() -> None:
    config = AdamWConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] > 0.97
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] == pytest.approx(
        0.1, abs=0.01
    )
