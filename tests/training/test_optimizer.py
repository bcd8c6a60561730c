"""The choice of AdamW's kernels, and the learning rate over time."""

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from showo_dist.config import load
from showo_dist.config.training import OptimizerConfig, OptimizerParams
from showo_dist.training.optimizer import build_optimizer, build_schedule
from tests.conftest import ROOT

APEX = OptimizerConfig(params=OptimizerParams(implementation="apex"))


def test_apex_is_never_taken_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    # An installed apex, and a GPU that torch sees, used to change the optimizer by themselves.
    monkeypatch.setitem(sys.modules, "apex.optimizers", ModuleType("apex.optimizers"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = build_optimizer(nn.Linear(2, 2), OptimizerConfig(), torch.device("cpu"), False)
    assert type(made) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("device", "reason"), [("cpu", "an NVIDIA GPU"), ("cuda", "NVIDIA's apex is not installed")]
)
def test_apex_where_it_cannot_run_is_one_line(device: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"implementation = apex: .*{reason}") as caught:
        build_optimizer(nn.Linear(2, 2), APEX, torch.device(device), False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "length"), [("showo_reca_clip", 1_000_000), ("showo_reca_256_clip", 10_000)]
)
def test_a_shorter_reca_run_keeps_the_published_rates(name: str, length: int) -> None:
    """The published runs have a cosine to this step, and end after about 5,000."""
    path = f"config={ROOT}/configs/reca/{name}.yaml"
    config = load([path, "training.max_train_steps=5000"], check=False)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, config.lr_scheduler, config.schedule_steps)
    rates = []
    for _ in range(5000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:1001:500] == [0, 0.5, 1]
    for step in (1001, 2500, 4999):
        wanted = 0.5 * (1 + math.cos(math.pi * (step - 1000) / (length - 1000)))
        assert rates[step] == pytest.approx(wanted, rel=1e-9)


STAGES = [
    p for d in ("showo", "reca", "backbones") for p in sorted((ROOT / "configs" / d).glob("*.yaml"))
]


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_the_first_clip_tuning_trains_the_projector_alone(path: Path) -> None:
    """And no other published stage does."""
    config = load([f"config={path}"], check=False)
    assert config.trains_projector_alone == ("instruction_tuning_1_w_clip" in path.stem)
