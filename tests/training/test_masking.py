"""Stratified masking gives the same curve on any number of ranks and workers, and after a resume."""

import math
import shutil
from pathlib import Path

import pytest

from tests.training.conftest import TinyWorld, train

SETTINGS = ("training.masking=stratified", "training.max_train_steps=8")


def test_ranks_workers_and_resume(tiny_world: TinyWorld, tmp_path: Path) -> None:
    saving = (*SETTINGS, "experiment.save_every=4")
    two = train(tiny_world, tmp_path / "two", *saving, ranks=2)
    assert two.code == 0, two.stderr[-3000:]
    shutil.copytree(two.run, tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "checkpoint-000008")
    other = (
        "training.gradient_accumulation_steps=2",
        "dataset.params.num_workers=1",
        "distributed.engine=torch",
    )
    one = train(tiny_world, tmp_path / "one", *SETTINGS, *other)
    assert one.code == 0, one.stderr[-3000:]
    assert one.resumed_at == 4
    for key in ("loss", "loss/t2i", "loss/recon", "masking_rate/t2i", "masking_rate/recon"):
        assert one.curve(first=5, key=key) == pytest.approx(two.curve(first=5, key=key), rel=1e-4)
    # One rank logs the fractions of the whole batch, four samples: one in every quarter of t.
    low, high = (sum(math.cos(math.pi / 8 * (k + d)) for k in range(4)) / 4 for d in (1, 0))
    assert all(low < rate < high for rate in one.curve(first=5, key="masking_rate/t2i"))
