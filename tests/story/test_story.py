"""``showo-dist mini``, which is ``make train``, from the first image to the report; only shorter."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

STEPS = {"tokenizer": 12, "pretrain": 6, "reca": 4}
SECTIONS = ("RecA", "codes in use", "tokens/s", "single object: colour", "Answered questions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the project's mini configs, cut to a few steps."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(ROOT / "configs" / "mini", folder / "configs" / "mini")
    for name, steps in STEPS.items():
        path = folder / "configs" / "mini" / f"{name}.yaml"
        text = re.sub(r"max_train_steps: \d+", f"max_train_steps: {steps}", path.read_text())
        text = re.sub(r"generate_every: \d+", "generate_every: 2", text)
        text = re.sub(r"eval_every: \d+", "eval_every: 6", text)
        path.write_text(text.replace("{000000..000009}", "{000000..000000}"))
    return folder


def mini(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "showo_dist.cli", "mini", "--images", "1000", "--limit", "3"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def story(folder: Path) -> subprocess.CompletedProcess[str]:
    done = mini(folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done


@pytest.mark.slow
def test_every_stage_leaves_its_part(story: subprocess.CompletedProcess[str], folder: Path) -> None:
    runs = folder / "runs" / "mini"
    lines = (runs / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == STEPS["pretrain"]
    assert set(json.loads(lines[-1])) >= {"loss/t2i", "loss/lm", "loss/mmu", "tokens_per_s", "mfu"}
    last = json.loads((runs / "reca" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "loss/recon" in last and "loss/t2i" not in last
    assert (runs / "reca" / "checkpoint-000004" / "manifest.json").is_file()
    assert (runs / "pretrain" / "images" / "t2i-000006.png").is_file()


@pytest.mark.slow
def test_the_report_tells_it(story: subprocess.CompletedProcess[str], folder: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (folder / "runs" / "mini" / name).read_text()
        for section in SECTIONS:
            assert section in text, (name, section)
    assert "report.md" in story.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_second_call_skips_what_is_there(
    story: subprocess.CompletedProcess[str], folder: Path
) -> None:
    before = (folder / "runs" / "mini" / "report.md").stat().st_mtime_ns
    again = mini(folder)
    assert again.returncode == 0
    assert again.stdout.count("done before") == story.stdout.count("== ") // 2
    assert (folder / "runs" / "mini" / "report.md").stat().st_mtime_ns == before
