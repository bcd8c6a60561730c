"""Which stages a call runs again: those of ``showo-dist mini``, and a runner of real processes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from showo_dist import mini
from showo_dist.recipe import Stage, StageRunner
from tests.conftest import ROOT


class Runs:
    """Two trainings, an evaluation and a report; their commands make a folder and note that they ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.configs = {"first": "a", "second": "a"}

    def stage(self, name: str, training: bool) -> Stage:
        final = self.folder / name / "final"
        made = f"mkdir -p {final} && " if training else ""
        command = ["sh", "-c", f"{made}echo {name} >>{self.log}"]
        return Stage(name, [command], final=final if training else None)

    def __call__(self) -> list[str]:
        """The stages that one call runs."""
        self.log.unlink(missing_ok=True)
        runner = StageRunner(self.folder / "stages.json", lambda s: self.configs.get(s.name, ""))
        for name in ("first", "second", "evaluation", "report"):
            runner.run(self.stage(name, name in self.configs))
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def call(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_finished_training_is_not_taken_for_one_with_another_config(
    call: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call() == ["first", "second", "evaluation", "report"]
    assert call() == []
    assert "remove" not in capsys.readouterr().out
    call.configs["second"] = "b"
    assert call() == []
    printed = capsys.readouterr().out
    assert f"has changed since; remove {call.folder / 'second'} to train it again" in printed
    assert f"remove {call.folder / 'first'}" not in printed
    shutil.rmtree(call.folder / "second")
    assert call() == ["second", "evaluation", "report"]
    assert call() == []
    assert "remove" not in capsys.readouterr().out


def test_what_follows_a_training_that_ran_again_is_named_or_run_again(
    call: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    call()
    shutil.rmtree(call.folder / "first")
    assert call() == ["first", "evaluation", "report"]
    assert f"remove {call.folder / 'second'} to train it again" in capsys.readouterr().out


def test_stages_after_a_training_that_was_killed_are_run_again(call: Runs) -> None:
    """Its second run has written its last folder, and the runner dies before it is recorded."""
    call()
    shutil.rmtree(call.folder / "second")
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from showo_dist.recipe import StageRunner
from tests.stages.test_mini import Runs
runs = Runs(Path({str(call.folder)!r}))
runner = StageRunner(runs.folder / "stages.json", lambda s: runs.configs.get(s.name, ""))
stage = runs.stage("second", True)
stage.commands[0][2] += f" && kill -9 {{os.getpid()}}"
runner.run(stage)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    assert call() == ["evaluation", "report"]


def _digests(tmp_path: Path, *changes: str) -> dict[str, str]:
    places = mini.Places(tmp_path / "data", tmp_path, tmp_path / "tokenizer")
    found = [*mini.common_stages(places, 2, 1000), *mini.stages(places, 2, 1000, 3, list(changes))]
    return {stage.name: mini._digest(stage) for stage in found}


def test_a_change_concerns_the_trainings_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    before, after = _digests(tmp_path), _digests(tmp_path, "training.seed=1")
    assert {name for name in before if before[name] != after[name]} == {"pre-training", "RecA"}
    assert {name for name, digest in before.items() if digest} == {
        *("image tokenizer", "pre-training", "RecA"),
    }


def test_an_image_tokenizer_that_was_trained_again_concerns_the_trainings_on_its_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other backbones as well, whose stages have a record of their own."""
    monkeypatch.chdir(ROOT)
    weights = tmp_path / "tokenizer" / "final" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    before = _digests(tmp_path)
    weights.write_bytes(b"again")
    after = _digests(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"pre-training", "RecA"}


def test_a_longer_training_has_another_last_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it continues, instead of being taken for finished."""
    monkeypatch.chdir(ROOT)
    places = mini.Places(tmp_path, tmp_path, tmp_path)
    usual, longer = (
        {s.name: s.final for s in mini.stages(places, 2, 1000, 3, changes)}
        for changes in ([], ["training.max_train_steps=9000"])
    )
    assert usual["pre-training"] != longer["pre-training"]
    assert longer["pre-training"] == tmp_path / "pretrain" / "checkpoint-009000"


def test_a_launcher_that_passes_signals_on_starts_the_tokenizer(tmp_path: Path) -> None:
    places = mini.Places(tmp_path, tmp_path, tmp_path)
    found = {stage.name: stage for stage in mini.common_stages(places, ranks=2, images=1000)}
    for name in ("image tokenizer", "encode"):
        (command,) = found[name].commands
        assert "torchrun" in [Path(word).name for word in command]
