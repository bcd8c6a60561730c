"""``showo-dist mini`` with stand-ins for its commands: which stages run, and by which launcher."""

import shutil
from pathlib import Path

import pytest

from showo_dist import mini
from showo_dist.recipe import Stage, stages
from tests.conftest import ROOT


class Calls:
    """Calls of the command, whose stages only create the folders that trainings end with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.ran = folder, list[str]()
        monkeypatch.setattr(stages, "_run_in_parallel", self._stand_in)
        monkeypatch.chdir(ROOT)

    def _stand_in(self, stage: Stage) -> None:
        self.ran.append(stage.name)
        if stage.final:
            stage.final.mkdir(parents=True)

    def __call__(self, *changes: str) -> list[str]:
        """The stages that one call runs."""
        self.ran = []
        places = ("--data", str(self.folder / "data"), "--runs", str(self.folder / "runs"))
        assert mini.main([*places, *changes]) == 0
        return self.ran


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(tmp_path, monkeypatch)


def test_a_finished_training_is_not_taken_for_one_with_another_config(
    call: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(call()) == 8
    assert call() == []
    assert "remove" not in capsys.readouterr().out
    assert call("training.seed=1") == []
    printed = capsys.readouterr().out
    runs = call.folder / "runs"
    for folder in (runs / "pretrain", runs / "reca"):
        assert f"has changed since; remove {folder} to train it again" in printed
    assert f"remove {runs / 'tokenizer'}" not in printed
    shutil.rmtree(runs / "pretrain")
    assert call("training.seed=1") == ["pre-training", "evaluation", "report"]
    shutil.rmtree(runs / "reca")
    capsys.readouterr()
    assert call("training.seed=1") == ["RecA", "evaluation", "report"]
    assert call("training.seed=1") == []
    assert "remove" not in capsys.readouterr().out


def test_stages_after_a_training_that_was_killed_are_run_again(
    call: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second run has written its last checkpoint, and is killed before it is recorded."""
    call()
    shutil.rmtree(call.folder / "runs" / "reca")

    def killed(stage: Stage) -> None:
        call._stand_in(stage)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(stages, "_run_in_parallel", killed)
        with pytest.raises(KeyboardInterrupt):
            call()
    assert call() == ["evaluation", "report"]


def test_a_longer_training_continues(call: Calls) -> None:
    call()
    longer = call("training.max_train_steps=9000")
    assert longer == ["pre-training", "RecA", "evaluation", "report"]


def test_a_launcher_that_passes_signals_on_starts_the_tokenizer(tmp_path: Path) -> None:
    places = mini.Places(tmp_path, tmp_path, tmp_path)
    found = {stage.name: stage for stage in mini.common_stages(places, ranks=2, images=1000)}
    for name in ("image tokenizer", "encode"):
        (command,) = found[name].commands
        assert "torchrun" in [Path(word).name for word in command]
