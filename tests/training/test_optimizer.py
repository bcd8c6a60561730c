"""The choice of AdamW's kernels."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from showo_dist.config.training import OptimizerConfig, OptimizerParams
from showo_dist.training.optimizer import build_optimizer

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
