"""The loss curve does not depend on how many ranks run it, nor does going on after a stop."""

import shutil
from pathlib import Path

import pytest

from tests.training.conftest import Outcome, TinyWorld, train

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def two_ranks(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """20 steps on two ranks under DeepSpeed's launcher, checkpoints at 10 and 20."""
    run = tmp_path_factory.mktemp("runs") / "two"
    outcome = train(tiny_world, run, "experiment.save_every=10", launcher="deepspeed", ranks=2)
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


def test_the_curve_is_one_of_learning(two_ranks: Outcome) -> None:
    assert sorted(two_ranks.losses) == list(range(1, 21))
    for flow in ("t2i", "lm", "mmu", "recon"):
        curve = two_ranks.curve(key=f"loss/{flow}")
        assert curve[-1] < 0.9 * curve[0], (flow, curve)


@pytest.mark.parametrize(
    ("launcher", "changes"),
    [
        ("python", ["training.gradient_accumulation_steps=2"]),
        (
            "torchrun",
            [
                "training.batch_size_t2i=4",
                "training.batch_size_lm=2",
                "training.batch_size_mmu=4",
                "training.batch_size_recon=2",
                "distributed.zero_stage=0",
                "dataset.params.num_workers=1",
            ],
        ),
    ],
    ids=["one-rank-accumulating", "one-rank-larger-batch-zero-0"],
)
def test_same_global_batch_same_curve(
    tiny_world: TinyWorld,
    two_ranks: Outcome,
    tmp_path: Path,
    launcher: str,
    changes: list[str],
) -> None:
    one = train(tiny_world, tmp_path / "run", *changes, launcher=launcher)
    assert one.code == 0, one.stderr[-3000:]
    for key in ("loss", "loss/t2i", "loss/lm", "loss/mmu", "loss/recon", "grad_norm"):
        assert one.curve(key=key) == pytest.approx(two_ranks.curve(key=key), rel=TOLERANCE), key


def _stopped_at_10(two_ranks: Outcome, run: Path) -> Path:
    """A copy of the run as it was after its first checkpoint."""
    shutil.copytree(two_ranks.run, run)
    shutil.rmtree(run / "checkpoint-000020")
    return run


def test_resume_is_exact_on_the_same_ranks(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    run = _stopped_at_10(two_ranks, tmp_path / "run")
    resumed = train(tiny_world, run, launcher="torchrun", ranks=2)
    assert resumed.code == 0, resumed.stderr[-3000:]
    assert resumed.curve() == two_ranks.curve()
    assert resumed.resumed_at == 10


def test_resume_on_other_ranks_goes_on(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    run = _stopped_at_10(two_ranks, tmp_path / "run")
    resumed = train(
        tiny_world, run, "training.gradient_accumulation_steps=2", "distributed.zero_stage=3"
    )
    assert resumed.code == 0, resumed.stderr[-3000:]
    assert resumed.resumed_at == 10
    assert resumed.curve(first=11) == pytest.approx(two_ranks.curve(first=11), rel=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "rates"),
    [
        # 3e-3 with 3 steps of warm-up, then cosine to 0 at step 20
        ("optimizer.params.learning_rate=1.5e-3", 0.5),
        ("lr_scheduler.scheduler=constant", None),
        ("lr_scheduler.params.warmup_steps=15", None),
        ("lr_scheduler.steps=200", None),
    ],
)
def test_a_changed_learning_rate_is_used_and_logged(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path, change: str, rates: float | None
) -> None:
    run = _stopped_at_10(two_ranks, tmp_path / "run")
    resumed = train(tiny_world, run, change, ranks=2)
    assert resumed.code == 0, resumed.stderr[-3000:]
    found, before = resumed.curve(first=11, key="lr"), two_ranks.curve(first=11, key="lr")
    fresh = train(tiny_world, tmp_path / "fresh", change, "experiment.log_every=1")
    assert fresh.code == 0, fresh.stderr[-3000:]
    assert found == pytest.approx(fresh.curve(first=11, key="lr"), rel=1e-12)
    assert found[0] != before[0]
    if rates is not None:
        assert found == pytest.approx([rates * rate for rate in before], rel=1e-12)
    assert "by the config" in resumed.stdout and "in the checkpoint" in resumed.stdout
