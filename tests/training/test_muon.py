"""A run with Muon resumes exactly on its ranks and elsewhere, and not with another optimizer."""

import shutil
from pathlib import Path

import pytest

from tests.training.conftest import Outcome, TinyWorld, train

MUON = ("optimizer.name=muon", "training.max_train_steps=12")


@pytest.fixture(scope="module")
def two_ranks(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two ranks under ZeRO-2, a checkpoint at step 6."""
    run = tmp_path_factory.mktemp("muon") / "two"
    changes = (*MUON, "experiment.save_every=6")
    outcome = train(tiny_world, run, *changes, ranks=2)
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


def _stopped_at_6(two_ranks: Outcome, run: Path) -> Path:
    shutil.copytree(two_ranks.run, run)
    shutil.rmtree(run / "checkpoint-000012")
    return run


def test_it_is_named_in_the_log(two_ranks: Outcome) -> None:
    # 2 blocks of 6 matrices
    assert "Muon orthogonalised 12 matrices in the first update" in two_ranks.stdout
    assert two_ranks.curve()[-1] < 0.9 * two_ranks.curve()[0]


def test_resume_is_exact_on_the_same_ranks(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    run = _stopped_at_6(two_ranks, tmp_path / "run")
    resumed = train(tiny_world, run, *MUON, ranks=2)
    assert resumed.code == 0, resumed.stderr[-3000:]
    assert resumed.resumed_at == 6
    assert resumed.curve() == two_ranks.curve()


@pytest.mark.parametrize("engine", ["distributed.zero_stage=3", "distributed.engine=torch"])
def test_resume_elsewhere(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path, engine: str
) -> None:
    run = _stopped_at_6(two_ranks, tmp_path / "run")
    resumed = train(tiny_world, run, *MUON, "training.gradient_accumulation_steps=2", engine)
    assert resumed.code == 0, resumed.stderr[-3000:]
    assert resumed.resumed_at == 6
    assert resumed.curve(first=7) == pytest.approx(two_ranks.curve(first=7), rel=1e-4)


def test_another_optimizer_is_refused_and_weights_alone_start_a_run(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    run = _stopped_at_6(two_ranks, tmp_path / "run")
    changes = ("optimizer.name=adamw", "training.max_train_steps=8")
    refused = train(tiny_world, run, *changes, "training.gradient_accumulation_steps=2")
    assert refused.code == 2
    (line,) = refused.stderr.strip().splitlines()[-1:]
    assert "optimizer.name is muon in the checkpoint, adamw now" in line
    source = f"experiment.init_from={run / 'checkpoint-000006'}"
    carried = train(tiny_world, tmp_path / "c", *changes, source, "experiment.init_optimizer=true")
    assert carried.code == 2 and "optimizer.name is muon" in carried.stderr
    batch = "training.gradient_accumulation_steps=2"  # the first global batch is that of two ranks
    started = train(tiny_world, tmp_path / "new", *changes, source, batch)
    assert started.code == 0, started.stderr[-3000:]
    assert started.losses[1]["loss"] < 0.95 * two_ranks.losses[1]["loss"]
