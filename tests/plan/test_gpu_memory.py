"""The predicted peak of memory against the GPU's allocator: one rank, a model of Show-o's width."""

from pathlib import Path

import pytest
import torch

from showo_dist.config import load
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, fake_ranks
from showo_dist.sequences import TOKEN_MULTIPLE
from showo_kernels import select_backend
from tests.plan.groups import measure_here

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CONFIG = Path(__file__).parents[2] / "configs" / "showo" / "showo_pretraining_stage2.yaml"
BASE = [
    f"config={CONFIG}",
    "model.showo.llm_config={num_hidden_layers: 4}",
    "training.mixed_precision=bf16",
    *("training.batch_size_t2i=4", "training.batch_size_mmu=4", "training.batch_size_lm=2"),
]
STAGES = (1, 2, 3)


def setting(stage: int, checkpointing: bool) -> list[str]:
    checkpoints = f"model.gradient_checkpointing={str(checkpointing).lower()}"
    return [*BASE, f"distributed.zero_stage={stage}", checkpoints]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_peak_is_predicted(stage: int, checkpointing: bool, tmp_path: Path) -> None:
    name, reason = select_backend("auto", "cuda", torch.bfloat16)
    if name != "flash":
        pytest.skip(f"plans assume flash attention: {reason}")
    arguments = setting(stage, checkpointing)
    (measured,) = measure_here("peak", [arguments], 1, tmp_path / "peak.json", "cuda")
    config = load(arguments, check=False)
    with fake_ranks(0, 1):
        engine = EngineOfShapes(config, torch.device("cuda"))
        profile = engine.step(AssumedSamples(config).micro_batch(TOKEN_MULTIPLE))
    print(f"ZeRO-{stage}: predicted {profile.peak:,}, measured {measured:,} bytes")
    assert profile.peak == pytest.approx(measured, rel=0.10)
