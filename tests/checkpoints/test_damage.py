"""A changed byte or a missing end in any file is found, and the file named."""

import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from showo_dist.checkpoint import BatchShape, CheckpointReader, complete_checkpoints, find_resume
from showo_dist.checkpoint.folders import set_back, verify
from showo_dist.checkpoint.reader import STARTED
from showo_dist.config.experiment import ExperimentConfig
from showo_dist.runtime.ranks import Ranks
from tests.checkpoints.group import on_ranks
from tests.checkpoints.jobs import saved_by

ALONE = Ranks(0, 1, torch.device("cpu"))
BATCH = BatchShape(2, 1, {"t2i": 4})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with checkpoints of steps 1 and 2."""
    run = tmp_path_factory.mktemp("damage") / "run"
    lines = on_ranks(2, saved_by, run, 2, [1, 2], {})[0]
    assert [line.split(" (")[0] for line in lines] == [
        f"saved {run / f'checkpoint-{step:06d}'}" for step in (1, 2)
    ]
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def _flips(content: bytes, count: int) -> list[bytes]:
    """The content with one bit changed: at both ends and at random places."""
    generator = random.Random(0)
    places = [0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(count))]
    flipped = []
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << generator.randrange(8)
        flipped.append(bytes(changed))
    return flipped


def _cuts(content: bytes) -> list[bytes]:
    return [b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\n"]


def test_every_file_is_protected(run: Path) -> None:
    folder = complete_checkpoints(run)[-1]
    names = sorted(path.name for path in folder.iterdir())
    assert {"manifest.json", "tensors.json", "state.json", "config.yaml"} < set(names)
    assert sum(name.endswith(".safetensors") for name in names) == 4
    assert verify(folder) is None
    for name in names:
        path = folder / name
        content = path.read_bytes()
        for damaged in (*_flips(content, count=40), *_cuts(content)):
            path.write_bytes(damaged)
            problem = verify(folder)
            assert problem is not None and str(path) in problem, (name, problem)
        path.unlink()
        assert str(path if name != "manifest.json" else folder) in str(verify(folder))
        path.write_bytes(content)
    assert verify(folder) is None


def test_the_ranks_share_the_checking(run: Path) -> None:
    """Whatever is damaged, exactly one of three ranks finds it."""
    folder = complete_checkpoints(run)[-1]
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        found = [verify(folder, rank=rank, world=3) for rank in range(3)]
        assert sum(problem is not None for problem in found) == 1
        path.write_bytes(content)


def test_those_who_read_weights_need_no_moments(run: Path) -> None:
    folder = complete_checkpoints(run)[-1]
    for path in folder.glob("optimizer-*"):
        path.unlink()
    reader = CheckpointReader(folder, only="weight")
    assert all(reader.read("weight", name).isfinite().all() for name in reader.names())
    with pytest.raises(ValueError, match="optimizer-0000"):
        CheckpointReader(folder)


def _damage(folder: Path) -> Path:
    path = folder / "optimizer-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return path


def test_a_damaged_newest_checkpoint_is_refused(run: Path) -> None:
    path = _damage(complete_checkpoints(run)[-1])
    with pytest.raises(ValueError, match="resume_fallback=true") as refusal:
        find_resume(run, ExperimentConfig(), BATCH, ALONE)
    assert str(path) in str(refusal.value)


def test_the_one_before_is_used_if_asked_to(run: Path) -> None:
    older, newest = complete_checkpoints(run)
    path = _damage(newest)
    resume = find_resume(run, ExperimentConfig(resume_fallback=True), BATCH, ALONE)
    assert resume.folder == older and resume.reader is not None
    assert resume.reader.state.step == 1
    assert str(path) in resume.warnings[0]
    _damage(older)
    with pytest.raises(ValueError, match=str(older)):
        find_resume(run, ExperimentConfig(resume_fallback=True), BATCH, ALONE)


def test_another_global_batch_is_refused_with_the_sum(run: Path) -> None:
    same = BatchShape(1, 2, {"t2i": 4})
    assert find_resume(run, ExperimentConfig(), same, ALONE).warnings == ()
    other = BatchShape(3, 1, {"t2i": 4, "lm": 1})
    with pytest.raises(ValueError, match="allow_batch_change") as refusal:
        find_resume(run, ExperimentConfig(), other, ALONE)
    for words in ("t2i 2 × 1 × 4 = 8 in the checkpoint", "3 × 1 × 4 = 12 now", "lm", "= 3 now"):
        assert words in str(refusal.value)
    allowed = find_resume(run, ExperimentConfig(allow_batch_change=True), other, ALONE)
    assert allowed.reader is not None and "3 × 1 × 4 = 12 now" in allowed.warnings[0]


def test_a_run_that_was_set_back_does_not_return(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command still names the older checkpoint, or nothing; a restart has saved the newer one itself."""
    older, newest = complete_checkpoints(run)
    named = ExperimentConfig(resume_from_checkpoint=str(older))
    anew = ExperimentConfig(resume_from_checkpoint=False)
    now = time.time()
    assert find_resume(run, ExperimentConfig(), BATCH, ALONE).folder == newest
    assert find_resume(run, named, BATCH, ALONE).folder == older
    assert find_resume(run, ExperimentConfig(), BATCH, ALONE).folder == older
    set_back(run, newest)  # points to it, as a save does
    for started, wanted in ((now - 60, newest), (now + 60, None)):
        monkeypatch.setenv(STARTED, str(started))
        resume = find_resume(run, anew, BATCH, ALONE)
        assert resume.folder == wanted
        assert [w.split(": held for the first")[0] for w in resume.warnings] == (
            ["experiment.resume_from_checkpoint = False"] if wanted else []
        )
        assert find_resume(run, named, BATCH, ALONE).folder == (wanted or older)
