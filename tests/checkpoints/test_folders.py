"""Which checkpoints are visible, kept and pointed at."""

from pathlib import Path

import pytest

from showo_dist.checkpoint.folders import (
    complete_checkpoints,
    folder_of,
    hidden,
    latest,
    prune,
    publish,
    set_back,
    sweep,
)
from showo_dist.checkpoint.reader import STARTED
from showo_dist.checkpoint.writer import resumed_from
from showo_dist.config.experiment import ExperimentConfig


def _publish(run: Path, step: int, text: str = "") -> Path:
    target = folder_of(run, step)
    aside = hidden(target, "partial")
    aside.mkdir(parents=True)
    (aside / "content").write_text(text)
    publish(aside, target)
    return target


def _steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in complete_checkpoints(run)]


def test_latest_follows(tmp_path: Path) -> None:
    for step in (5, 10, 1_000_000):
        target = _publish(tmp_path, step)
        assert latest(tmp_path) == target
    assert _steps(tmp_path) == [5, 10, 1_000_000]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    _publish(tmp_path, 5, "old")
    target = _publish(tmp_path, 5, "new")
    assert (target / "content").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000005", "latest"]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (0, 0, [10, 20, 30, 40, 50, 60]),
        (2, 0, [50, 60]),
        (2, 20, [20, 40, 50, 60]),
        (1, 30, [30, 60]),
        (9, 7, [10, 20, 30, 40, 50, 60]),
    ],
)
def test_what_is_kept(tmp_path: Path, keep_last: int, keep_every: int, kept: list[int]) -> None:
    for step in range(10, 70, 10):
        _publish(tmp_path, step)
    prune(tmp_path, 60, keep_last, keep_every)
    assert _steps(tmp_path) == kept
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [25, 30, 40]), (2, [20, 25, 30, 40])])
def test_a_run_that_is_set_back_keeps_what_it_writes(
    tmp_path: Path, keep_last: int, kept: list[int]
) -> None:
    """Begun again from step 10 or 20 of 40, it saves 25; the later ones are of the other branch."""
    for step in (10, 20, 30, 40):
        _publish(tmp_path, step)
    target = _publish(tmp_path, 25)
    prune(tmp_path, 25, keep_last, 0)
    assert _steps(tmp_path) == kept
    assert latest(tmp_path) == target and target.is_dir()


def test_a_run_comes_from_what_it_resumed_from_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set back to step 10 of 30, from a path, and from scratch beside the checkpoints of an earlier run."""
    for step in (10, 20, 30):
        _publish(tmp_path, step)
    own = tmp_path / "checkpoint-000010"
    set_back(tmp_path, own)
    other = "/other/checkpoint-000007"
    for choice, wanted in (("latest", own), (True, own), (other, Path(other)), (False, None)):
        policy = ExperimentConfig(resume_from_checkpoint=choice)
        assert resumed_from(tmp_path, policy) == wanted
        assert resumed_from(tmp_path / "empty", policy) == (None if wanted == own else wanted)
    monkeypatch.setenv(STARTED, "0")  # a restart, after the job has saved
    assert resumed_from(tmp_path, ExperimentConfig(resume_from_checkpoint=False)) == own


def test_a_killed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Killed while writing, deleting, replacing, and pointing ``latest``."""
    _publish(tmp_path, 5)
    for step, purpose in ((10, "partial"), (3, "deleted"), (5, "replaced")):
        hidden(folder_of(tmp_path, step), purpose).mkdir()
    lost = hidden(folder_of(tmp_path, 7), "replaced")
    lost.mkdir()
    (tmp_path / ".latest.0a1b2c3d").write_text("checkpoint-000010")
    (tmp_path / ".checkpoint-notes").write_text("not ours")
    sweep(tmp_path)
    assert _steps(tmp_path) == [5, 7]
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".checkpoint-notes"]
