"""``showo-dist mini``, which ``make train`` runs, from the data to the report, with few steps."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_script

COMMAND = (sys.executable, "-m", "showo_dist.cli", "mini")
STEPS = {"tokenizer": 12, "pretrain": 6, "reca": 4}
CONTENTS = ("RecA", "codes in use", "tokens/s", "single object: colour", "Answered questions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the project's mini configs, cut to a few steps."""
    folder = tmp_path_factory.mktemp("mini")
    shutil.copytree(ROOT / "configs" / "mini", folder / "configs" / "mini")
    for name, steps in STEPS.items():
        path = folder / "configs" / "mini" / f"{name}.yaml"
        text = re.sub(r"max_train_steps: \d+", f"max_train_steps: {steps}", path.read_text())
        text = re.sub(r"generate_every: \d+", "generate_every: 2", text)
        text = re.sub(r"eval_every: \d+", "eval_every: 6", text)
        path.write_text(text)
    return folder


def mini(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--images", "1000", "--limit", "3", "--data", "world", "--runs", "out", *more],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.fixture(scope="module")
def first_call(folder: Path) -> subprocess.CompletedProcess[str]:
    done = mini(folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done


@pytest.mark.story
def test_every_stage_writes_its_files(
    first_call: subprocess.CompletedProcess[str], folder: Path
) -> None:
    runs = folder / "out"
    lines = (runs / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == STEPS["pretrain"]
    assert set(json.loads(lines[-1])) >= {"loss/t2i", "loss/lm", "loss/mmu", "tokens_per_s", "mfu"}
    assert set(json.loads(lines[-1])) >= {"validation/loss", "validation/t2i", "validation/mmu"}
    last = json.loads((runs / "reca" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "loss/recon" in last and "loss/t2i" not in last
    assert (runs / "reca" / "checkpoint-000004" / "manifest.json").is_file()
    assert (runs / "pretrain" / "images" / "t2i-000006.png").is_file()


@pytest.mark.story
def test_the_report_is_complete(first_call: subprocess.CompletedProcess[str], folder: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (folder / "out" / name).read_text()
        for content in CONTENTS:
            assert content in text, (name, content)
    for name in ("report-grid.png", "report-losses.png"):
        assert 0 < (folder / "out" / name).stat().st_size < 200_000
    assert "report.md" in first_call.stdout.splitlines()[-1]


@pytest.mark.story
def test_a_second_call_skips_finished_stages(
    first_call: subprocess.CompletedProcess[str], folder: Path
) -> None:
    before = (folder / "out" / "report.md").stat().st_mtime_ns
    again = mini(folder)
    assert again.returncode == 0
    assert again.stdout.count("done before") == first_call.stdout.count("== ") // 2
    assert (folder / "out" / "report.md").stat().st_mtime_ns == before


@pytest.mark.backbones
def test_another_backbone_shares_data_and_tokenizers(
    first_call: subprocess.CompletedProcess[str], folder: Path
) -> None:
    done = mini(folder, "--backbone", "qwen3")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert done.stdout.count("done before") == 4
    runs = folder / "out" / "qwen3"
    (checkpoint,) = (runs / "pretrain").glob("checkpoint-*")
    weights = json.loads((checkpoint / "tensors.json").read_text())["tensors"]["weight"]
    assert any(name.endswith("self_attn.q_norm.weight") for name in weights)
    report = (runs / "report.md").read_text()
    assert "| prompts, before RecA |" in report and "codes in use" in report


@pytest.mark.story
def test_weak_scaling_is_measured_on_its_data(
    first_call: subprocess.CompletedProcess[str], folder: Path
) -> None:
    shards = {"t2i": "world/encoded/train", "mmu": "world/encoded/train", "lm": "world/text"}
    changes = [
        f"dataset.params.train_{f}_shards_path_or_url={s}-000000.tar" for f, s in shards.items()
    ]
    changes += [
        f"dataset.params.validation_{flow}_shards_path_or_url=world/val-000000.tar"
        for flow in ("t2i", "mmu")
    ]
    changes += ["model.vq_model.vq_model_name=out/tokenizer/final"]
    changes += ["model.showo.tokenizer_path=world/text_tokenizer"]
    options = ("--skip", "1", "--steps", "2", "--repeats", "1", "--json", "weak.json")
    run_script(ROOT / "benchmarks" / "weak_scaling.py", *options, *changes, folder=folder)
    (row,) = json.loads((folder / "weak.json").read_text())["rows"]
    assert row["steps/s, two / one"] == pytest.approx(row["one rank s"] / row["two ranks s"])


def test_an_unknown_backbone_is_one_line(folder: Path) -> None:
    refused = mini(folder, "--backbone", "gpt5")
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "--backbone gpt5" in line and line.endswith("there are llama, qwen3")
