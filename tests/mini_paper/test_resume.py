"""A comparison that is killed at any place continues: finished stages are not run again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mini_paper.arms import ARMS, QUICK, QUICK_ARMS, Scale
from mini_paper.running import digest, finished, seconds_left
from mini_paper.steps import Paper, Step

from showo_dist.config import TrainConfig, load, wants_system_prompt
from showo_dist.recipe import Stage
from tests.conftest import ROOT

# Five stages that note their number; the third kills the command that started it, the first time.
DRIVER = """
import sys
from pathlib import Path
from mini_paper.steps import Step
from mini_paper.running import run
from showo_dist.recipe import Stage

out = Path(sys.argv[1])
NOTE = '''
import os, signal, sys
from pathlib import Path
out, number = Path(sys.argv[1]), sys.argv[2]
with (out / "ran").open("a") as stream:
    stream.write(number)
if number == "2" and (out / "ran").read_text().count("2") < 2:
    os.kill(os.getppid(), signal.SIGKILL)
'''
steps = [Step(Stage(f"stage {n}", [[sys.executable, "-c", NOTE, str(out), str(n)]]), 1) for n in range(5)]
run(out, steps)
"""


def _start(out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_killed_and_started_again(tmp_path: Path) -> None:
    assert _start(tmp_path).returncode == -9
    last = _start(tmp_path)
    assert last.returncode == 0, last.stderr
    assert (tmp_path / "ran").read_text() == "012234"
    assert "== 2 of 5 stages were done before" in last.stdout
    again = _start(tmp_path)
    assert again.returncode == 0 and "== 5 of 5 stages were done before" in again.stdout
    assert (tmp_path / "ran").read_text() == "012234"


def test_a_stage_does_not_outlive_its_command(tmp_path: Path) -> None:
    """Else its second start would find the first one at work in the same folder."""
    sleeping = (
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"
    )
    driver = f"""
import sys
from pathlib import Path
from showo_dist.recipe import Stage, StageRunner
command = [sys.executable, "-c", {sleeping!r}, {str(tmp_path / "pid")!r}]
StageRunner(Path({str(tmp_path / "stages.json")!r}), lambda _: "").run(Stage("long", [command]))
"""
    command = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT)
    pid = tmp_path / "pid"
    _wait(lambda: pid.is_file() and pid.read_text() != "")
    command.kill()
    command.wait()
    _wait(lambda: _ended(Path(f"/proc/{pid.read_text()}/stat")))


def _ended(stat: Path) -> bool:
    """Whether a process is gone, or dead and not yet collected by its new parent."""
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_time_left_follows_the_pace_so_far() -> None:
    steps = [Step(Stage(name, []), seconds) for name, seconds in (("a", 10), ("b", 30), ("c", 5))]
    assert seconds_left(steps, {}) == 45
    assert seconds_left(steps, {"a": {"seconds": 20.0}}) == 2 * 35
    assert seconds_left(steps, {name: {"seconds": 1.0} for name in "abc"}) == 0


def test_stages_of_a_comparison(tmp_path: Path) -> None:
    """Names are unique, every start is trained before its arms, and nothing is read before it is written."""
    full, quick = Paper(tmp_path, Scale()), Paper(tmp_path, QUICK, QUICK_ARMS)
    for paper in (full, quick):
        steps = list(paper.steps())
        names = [step.stage.name for step in steps]
        assert len(set(names)) == len(names)
        trained: set[str] = set()
        for step in steps:
            for line in step.stage.lines:
                for word in line.split():
                    if ("/checkpoint-" in word and "init_from" in word) or word.startswith(
                        f"{tmp_path}/runs"
                    ):
                        assert word.split("/runs/")[1].split("/")[0] in trained, line
            if step.stage.name.endswith(": train"):
                trained.update(step.stage.name.removesuffix(": train").split(", "))
    assert digest(list(full.steps())) == digest(list(full.steps())) != digest(list(quick.steps()))
    assert sum(step.seconds for step in full.steps()) < 3 * 3600
    assert sum(step.seconds for step in quick.steps()) < 11 * 60


def test_other_arms_can_be_added_later(tmp_path: Path) -> None:
    """Runs with a result are left out, whatever pairs they were made in."""
    full = Paper(tmp_path, Scale())
    wanted = [tmp_path / "results" / f"{name}.json" for name in ("reca-0", "before-3")]
    wanted[0].parent.mkdir()
    for path in wanted:
        path.write_text("{}")
    rest = replace(full, finished=finished(tmp_path))
    lines = [line for step in rest.steps() for line in step.stage.lines]
    assert not any(str(path) in line for path in wanted for line in lines)
    results = {full.result(arm, seed) for arm in ARMS for seed in range(5) if not arm.ablation}
    assert all(any(str(path) in line for line in lines) for path in results - {*wanted})
    few = replace(rest, arms=tuple(arm for arm in ARMS if arm.name in ("reca", "no-recon")))
    names = [step.stage.name for step in few.steps()]
    assert not any("clip" in name.lower() or "recon-10" in name for name in names)
    assert "no-recon-0: train" in names and "reca-1, no-recon-1: train" in names


@pytest.mark.slow
def test_conversations_have_room_for_answers(tmp_path: Path) -> None:
    """The system prompt is longer than the text budget of the mini world, and answers behind it are cut."""
    steps = Paper(tmp_path, Scale()).steps()
    trainings = [step.stage for step in steps if step.stage.name.endswith(": train")]
    commands = [command for stage in trainings for command in stage.commands]
    read = [load(c[c.index("showo_dist.train") + 1 :], TrainConfig, check=False) for c in commands]
    assert any(config.model.showo.w_clip_vit for config in read)
    assert not any(wants_system_prompt(config) for config in read)
