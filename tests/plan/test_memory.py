"""The predicted peak of memory against torch's allocator in real runs on two ranks."""

from pathlib import Path

import pytest
import torch

from showo_dist.config import load
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, fake_ranks
from showo_dist.plan.shapes import PARTS
from showo_dist.sequences import TOKEN_MULTIPLE
from tests.plan.groups import measure_here

RANKS, TOLERANCE = 2, 0.02
CONFIG = str(Path(__file__).parents[2] / "configs" / "mini" / "pretrain.yaml")
BASE = [
    f"config={CONFIG}",
    "optimizer.name=adamw",
    "training.batch_size_t2i=2",
    "training.batch_size_mmu=2",
    "training.batch_size_lm=1",
    # More layers of the same kind take longer and show nothing else.
    "model.showo.llm_config.num_hidden_layers=2",
]
# DeepSpeed's default buckets are a thousand times the size of this model and would hide everything else.
BUCKETS = (
    "distributed.deepspeed={zero_optimization: {reduce_bucket_size: 200000, allgather_bucket_size: 200000, "
    "stage3_prefetch_bucket_size: 50000, stage3_param_persistence_threshold: 1000, "
    "stage3_max_live_parameters: 300000}}"
)


def setting(stage: int, *changes: str, bits: str = "fp32") -> list[str]:
    """Arguments of one setting."""
    precision = f"training.mixed_precision={bits}"
    return [*BASE, f"distributed.zero_stage={stage}", BUCKETS, precision, *changes]


CHECKPOINTING = "model.gradient_checkpointing=true"
ACCUMULATING = "training.gradient_accumulation_steps=2"
GRADIENTS_IN_BF16 = (
    "distributed.gradient_accumulation_dtype=bf16",
    "distributed.gradient_reduction_dtype=bf16",
)
SETTINGS = {
    "zero-0": setting(0),
    "zero-1": setting(1),
    "zero-2": setting(2),
    "zero-3": setting(3),
    "zero-1-accumulating": setting(1, ACCUMULATING),
    "zero-2-checkpointing": setting(2, CHECKPOINTING),
    "zero-3-checkpointing": setting(3, CHECKPOINTING),
    "zero-2-bf16": setting(2, bits="bf16"),
    "zero-3-bf16": setting(3, bits="bf16"),
    "zero-2-gradients-in-bf16": setting(2, ACCUMULATING, *GRADIENTS_IN_BF16, bits="bf16"),
    "zero-2-wide": setting(2, "training.batch_size_t2i=6"),
    "zero-0-muon": setting(0, "optimizer.name=muon"),
    "zero-2-muon": setting(2, "optimizer.name=muon"),
    "zero-2-averages": setting(2, "training.ema.decay=0.999"),
    # Last: something in DeepSpeed keeps this optimizer alive until the next one is built.
    "zero-1-accumulating-bf16": setting(1, ACCUMULATING, bits="bf16"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    out = tmp_path_factory.mktemp("peaks") / "peaks.json"
    peaks = measure_here("peak", list(SETTINGS.values()), RANKS, out)
    return dict(zip(SETTINGS, peaks, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_peak_is_predicted(name: str, measured: dict[str, int]) -> None:
    config = load(SETTINGS[name], check=False)
    with fake_ranks(0, RANKS):
        engine = EngineOfShapes(config, torch.device("cpu"))
        profile = engine.step(AssumedSamples(config).micro_batch(TOKEN_MULTIPLE))
    print(f"{name}: predicted {profile.peak:,}, measured {measured[name]:,} bytes")
    assert profile.peak == pytest.approx(measured[name], rel=TOLERANCE)
    assert sum(profile.at_peak.values()) == profile.peak
    assert set(profile.at_peak) == set(PARTS)
