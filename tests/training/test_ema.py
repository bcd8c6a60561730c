"""The averages of the weights in a run: evaluated, saved, resumed and exported."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from showo_dist.checkpoint import CheckpointReader
from showo_dist.checkpoint.slices import EMA, WEIGHT
from showo_dist.export.folders import export
from showo_dist.training import optimizer
from showo_dist.training.optimizer import Ema
from tests.training.conftest import Outcome, TinyWorld, train

ON = "training.ema.decay=0.6"


def _changes(world: TinyWorld) -> tuple[str, ...]:
    held_out = f"dataset.params.validation_t2i_shards_path_or_url={world.data}/val-000000.tar"
    evaluating = (held_out, "experiment.eval_every=4", "training.ema.evaluate=true")
    return (ON, *evaluating, "training.max_train_steps=8", "experiment.save_every=4")


@pytest.fixture(scope="module")
def two_ranks(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two ranks under ZeRO-2, a checkpoint and an image grid after step 4."""
    run = tmp_path_factory.mktemp("ema") / "two"
    grids = "experiment.generate_every=4"
    outcome = train(tiny_world, run, *_changes(tiny_world), grids, ranks=2)
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


def _stopped_at_4(two_ranks: Outcome, run: Path) -> Path:
    shutil.copytree(two_ranks.run, run)
    shutil.rmtree(run / "checkpoint-000008")
    return run


def _read(run: Path, step: int, kind: str = EMA) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(run / f"checkpoint-{step:06d}")
    return {name: reader.read(kind, name) for name in reader.names(kind)}


def test_resume_is_exact_and_evaluating_changes_nothing(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    run = _stopped_at_4(two_ranks, tmp_path / "run")
    never = ("training.ema.evaluate=false", "experiment.generate_every=0")
    resumed = train(tiny_world, run, *_changes(tiny_world), *never, ranks=2)
    assert resumed.code == 0, resumed.stderr[-3000:]
    assert resumed.resumed_at == 4
    assert resumed.curve() == two_ranks.curve()
    for kind in (EMA, WEIGHT):
        wanted = _read(two_ranks.run, 8, kind)
        found = _read(run, 8, kind)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    weights = _read(run, 8, WEIGHT)
    assert any(not torch.equal(weights[name], tensor) for name, tensor in _read(run, 8).items())
    averaged, plain = (o.losses[8]["validation/t2i"] for o in (two_ranks, resumed))
    assert averaged > plain + 0.01, "the averages lag behind"


def test_resume_elsewhere(tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path) -> None:
    run = _stopped_at_4(two_ranks, tmp_path / "run")
    other = ("training.gradient_accumulation_steps=2", "distributed.zero_stage=3")
    resumed = train(tiny_world, run, *_changes(tiny_world), *other)
    assert resumed.code == 0, resumed.stderr[-3000:]
    assert resumed.resumed_at == 4
    for name, tensor in _read(two_ranks.run, 8).items():
        assert torch.allclose(_read(run, 8)[name], tensor, atol=1e-5), name
    validated = [o.losses[8]["validation/t2i"] for o in (two_ranks, resumed)]
    assert validated[1] == pytest.approx(validated[0], rel=1e-4)


def test_averages_end_and_begin_with_one_line(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    run = _stopped_at_4(two_ranks, tmp_path / "run")
    common = ("training.gradient_accumulation_steps=2", "distributed.engine=torch")
    until = [(*common, f"training.max_train_steps={step}") for step in (5, 7)]
    off = train(tiny_world, run, *until[0])
    assert off.code == 0, off.stderr[-3000:]
    assert "training.ema.decay is null: the averaged weights of" in off.stdout
    assert not _read(run, 5)
    on = train(tiny_world, run, *until[1], ON, "experiment.save_every=1")
    assert on.code == 0, on.stderr[-3000:]
    assert "checkpoint-000005 has no averaged weights: they start from its weights" in on.stdout
    wanted = _read(run, 5, WEIGHT)
    for step in (6, 7):
        decay = min(0.6, step / (step + 9))  # of updates 5 and 6
        for name, tensor in _read(run, step, WEIGHT).items():
            wanted[name] = decay * wanted[name] + (1 - decay) * tensor
    for name, tensor in _read(run, 7).items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name


def test_export_by_choice(two_ranks: Outcome, tmp_path: Path) -> None:
    folder = two_ranks.run / "checkpoint-000008"
    for kind in (EMA, WEIGHT):
        export(folder, tmp_path / kind, averaged=kind == EMA)
        exported = load_file(tmp_path / kind / "model.safetensors")
        stored = _read(two_ranks.run, 8, kind)
        assert exported.keys() == stored.keys()
        assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())
    with pytest.raises(ValueError, match=r"no averaged weights; it is not a training checkpoint"):
        export(tmp_path / WEIGHT, tmp_path / "again", averaged=True)


def test_weights_and_averages_change_places_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "_AT_ONCE", 3)
    weights, averages = ([torch.randn(n) + k for n in (1, 3, 7)] for k in (0, 10))
    before = [tensor.clone() for tensor in (*averages, *weights)]
    with Ema(0.9, weights, averages).in_place_of_weights(lambda: None):
        assert all(map(torch.equal, (*weights, *averages), before))
    assert all(map(torch.equal, (*averages, *weights), before))
