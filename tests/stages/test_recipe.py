"""A recipe runs its stages in order, skips the finished ones, and resumes the one that was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from showo_dist.recipe.cli import main, read_recipe
from tests.conftest import ROOT
from tests.training.conftest import TinyWorld

RECIPES = ROOT / "configs" / "recipes"
MINI = RECIPES / "mini.yaml"
NAMES = ["stage1", "stage2", "stage3", "tuning", "reca"]
STEPS = 6


def tiny_arguments(world: TinyWorld, runs: Path) -> list[str]:
    """The mini recipe on the tiny world."""
    arguments = [str(MINI), f"runs={runs}", "ranks=1", "launch=python -m"]
    for name in NAMES:
        arguments += [
            f"stages.{name}.config={world.config}",
            f"stages.{name}.changes.training.max_train_steps={STEPS}",
        ]
    arguments += [
        "changes.experiment.save_every=1",
        "changes.experiment.keep_last=2",
        "changes.training.batch_size_recon=-1",
        "stages.reca.changes.training={max_train_steps: 6, batch_size_recon: 1, t2i_coeff: 0.0}",
    ]
    return arguments


def start(world: TinyWorld, runs: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "showo_dist.cli", "recipe", *tiny_arguments(world, runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def steps_logged(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.story
def test_killed_in_the_second_stage_and_started_again(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    killed = start(tiny_world, runs)
    wait_for(runs / "stage2" / "checkpoint-000002", killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (runs / "stage2" / f"checkpoint-{STEPS:06d}").exists()
    assert list(json.loads((runs / "stages.json").read_text())) == ["stage1"]
    first = (runs / "stage1" / "metrics.jsonl").stat().st_mtime_ns
    again = start(tiny_world, runs)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output[-4000:]
    assert "== stage1: done before" in output and "== stage2: done before" not in output
    assert "stage2/checkpoint-00000" in output.partition("resuming from")[2].splitlines()[0]
    assert (runs / "stage1" / "metrics.jsonl").stat().st_mtime_ns == first
    for name in NAMES:
        assert (runs / name / f"checkpoint-{STEPS:06d}").is_dir()
        assert steps_logged(runs / name)[-1] == STEPS
    events = (runs / "reca" / "events.jsonl").read_text()
    assert "recon 1" in events and "t2i" not in events.partition("flows")[2].partition('"}')[0]
    assert f"{runs}/reca/checkpoint-{STEPS:06d}" in output.splitlines()[-1]


def test_each_stage_starts_from_the_one_before(tiny_world: TinyWorld, tmp_path: Path) -> None:
    arguments = tiny_arguments(tiny_world, tmp_path)
    runs, stages = read_recipe(Path(arguments[0]), arguments[1:])
    assert runs == tmp_path and [ready.stage.name for ready in stages] == NAMES
    sources = [ready.config.experiment.init_from for ready in stages]
    assert sources == [None, *(str(ready.final) for ready in stages[:-1])]
    assert {ready.config.experiment.output_dir for ready in stages} == {
        f"{tmp_path}/{name}" for name in NAMES
    }
    assert stages[0].stage.commands[0][:3] == [sys.executable, "-m", "showo_dist.train"]


@pytest.mark.parametrize("file", sorted(RECIPES.glob("showo_*.yaml")), ids=lambda path: path.stem)
def test_published_recipes_lack_data_alone(file: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read_recipe(file)
    lines = str(caught.value).splitlines()
    assert all("is empty" in line for line in lines)
    stages = [line.split("stage ")[1].partition(":")[0] for line in lines]
    assert list(dict.fromkeys(stages)) == [
        *("stage1", "stage2", "stage3", "tuning1", "tuning2", "reca")
    ]
    filled = [
        f"stages.{name}.changes.dataset.params.train_{flow}_shards_path_or_url=a.tar"
        for name in dict.fromkeys(stages)
        for flow in (("recon", "mmu") if name == "reca" else ("t2i", "mmu", "lm"))
    ]
    _, ready = read_recipe(file, filled)
    assert [stage.config.training.max_train_steps for stage in ready][:3] == [
        500000,
        1000000,
        50000,
    ]
    clip = "clip" in file.stem
    assert [stage.config.model.showo.w_clip_vit for stage in ready] == 3 * [False] + 3 * [clip]


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs: r\n", ["needs runs (a folder) and stages"]),
        ("runs: r\nstages: {a: {konfig: x}}", ["stage a", "config"]),
        ("runs: r\nstages: {a: {config: x.yaml, chages: {}}}", ["chages", "changes"]),
        ("runs: r\nstages: {'a b': {config: x.yaml}}", ["'a b'"]),
        ("runs: r\nstages: {a: {config: gone.yaml}}", ["stage a", "gone.yaml"]),
        ("runs: r\nstage: {}", ["stage", "stages"]),
        ("runs: r\nstages: {a: {config: TINY, ranks: two}}", ["stage a", "two"]),
        ("runs: r\nstages: {a: {config: TINY, changes: 3}}", ["stage a", "3"]),
        ("runs: r\nlaunch: 'srun {hosts}'\nstages: {a: {config: TINY}}", ["launch", "{ranks}"]),
        (
            "runs: r\nstages: {a: {config: TINY, changes: {training.sed: 1}}}",
            ["stage a", "training.sed", "training.seed"],
        ),
        (
            "runs: r\nstages: {a: {config: TINY}, b: {config: TINY, changes: {training.seed: -1}}}",
            ["stage b", "training.seed = -1"],
        ),
    ],
)
def test_mistakes(tiny_world: TinyWorld, tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path, text.replace("TINY", str(tiny_world.config)))
    with pytest.raises(ValueError) as caught:
        read_recipe(file)
    for word in words:
        assert word in str(caught.value)


def test_a_failing_stage_stops_the_recipe(
    tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_arguments(tiny_world, tmp_path)
    assert main([*arguments, "launch=false"]) == 1
    assert "stage1: exit code 1 of " in capsys.readouterr().err
    assert not (tmp_path / "stages.json").exists()


def test_a_dry_run_prints_commands(
    tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_arguments(tiny_world, tmp_path / "runs")
    # As the help has it: options between the file and the changes.
    assert main([arguments[0], "--dry-run", *arguments[1:]]) == 0
    printed = capsys.readouterr().out
    assert printed.count("to run") == len(NAMES) and "experiment.init_from=" in printed
    assert not (tmp_path / "runs").exists()
