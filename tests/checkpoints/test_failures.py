"""A checkpoint that cannot be written: one line, nothing half-written, the older ones stay."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from showo_dist.checkpoint import complete_checkpoints
from showo_dist.checkpoint.folders import latest, sweep, verify
from tests.checkpoints.group import on_ranks, started
from tests.checkpoints.jobs import (
    saved_by,
    saved_for_ever,
    saved_on_a_full_disk,
    saved_with_a_failing_copy,
)

KILLS = 6


def _mount(folder: Path, *options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not _mount(folder, "size=2m"):
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _visible(run: Path) -> list[int]:
    return [int(path.name[-6:]) for path in complete_checkpoints(run)]


def test_a_full_disk_costs_one_checkpoint(disk: Path) -> None:
    run = disk / "run"
    for lines in on_ranks(2, saved_on_a_full_disk, run, {}):
        assert [line.split(":")[0].split(" (")[0] for line in lines] == [
            f"saved {run}/checkpoint-000001",
            "could not save checkpoint-000002",
            f"saved {run}/checkpoint-000003",
        ]
        for words in ("rank ", "No space left", f"checkpoint is {run}/checkpoint-000001"):
            assert words in lines[1]
        assert "\n" not in lines[1]
    assert _visible(run) == [1, 3]
    assert all(verify(folder) is None for folder in complete_checkpoints(run))
    assert not list(run.glob(".*"))


def test_a_copy_that_fails_on_one_rank_is_known_to_all(tmp_path: Path) -> None:
    for lines in on_ranks(2, saved_with_a_failing_copy, tmp_path / "run"):
        (failed,) = [line for line in lines if line.startswith("could not save checkpoint-000002")]
        assert "no memory for the copy" in failed
    assert _visible(tmp_path / "run") == [1, 3]


def test_it_stops_the_run_if_it_is_to(disk: Path) -> None:
    run = disk / "run"
    for lines in on_ranks(2, saved_on_a_full_disk, run, {"on_save_error": "stop"}):
        assert len(lines) == 2
        assert lines[1].startswith("ended by SaveError: could not save checkpoint-000002: rank ")
    assert _visible(run) == [1] and not list(run.glob(".*"))
    assert latest(run) == run / "checkpoint-000001"


@pytest.mark.parametrize("asynchronously", [True, False])
def test_a_run_whose_last_state_is_lost_says_so(disk: Path, asynchronously: bool) -> None:
    run = disk / "run"
    assert on_ranks(1, saved_by, run, 0, [1], {})
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    policy = {"save_asynchronously": asynchronously}
    lines = on_ranks(1, saved_by, run, 0, [2], policy)[0]
    assert lines[-1].startswith("ended by could not save checkpoint-000002: rank 0")
    assert "Read-only file system" in lines[-1] and "checkpoint-000001" in lines[-1]
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert _visible(run) == [1] and verify(run / "checkpoint-000001") is None


def test_kills_never_leave_an_unreadable_checkpoint(tmp_path: Path) -> None:
    run, moments = tmp_path / "run", random.Random(1)
    newest = 0
    for _ in range(KILLS):
        sweep(run)
        with started(2, saved_for_ever, run) as processes:
            deadline = time.monotonic() + 300
            while max(_visible(run), default=0) < newest + 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.3))
            for process in moments.sample(processes, len(processes)):
                process.kill()
                time.sleep(moments.uniform(0, 0.02))
        folders = complete_checkpoints(run)
        assert len(folders) >= 1 and _visible(run)[-1] >= newest + 3
        assert [verify(folder) for folder in folders] == [None] * len(folders)
        newest_named = latest(run)
        assert newest_named is not None and verify(newest_named) is None
        newest = _visible(run)[-1]
    sweep(run)
    assert not list(run.glob(".*")) and newest >= 3 * KILLS
