"""``showo-dist config``: resolved YAML on stdout, hints on stderr, one line and code 2 for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from showo_dist.cli import main
from showo_dist.config import TrainConfig, load_file
from tests.config.conftest import CONFIGS, ROOT

RECA = str(CONFIGS / "reca" / "showo_reca.yaml")


def test_prints_the_resolved_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", RECA, "training.batch_size_mmu=3"]) == 0
    printed = capsys.readouterr()
    (tmp_path / "out.yaml").write_text(printed.out)
    config = load_file(tmp_path / "out.yaml", TrainConfig, check=False)
    assert config == load_file(RECA, TrainConfig, ["training.batch_size_mmu=3"], check=False)
    kinds = [line.partition(": ")[0] for line in printed.err.splitlines()]
    assert kinds.count("to fill in before training") == 2
    assert set(kinds) <= {"to fill in before training", "without effect"}


def test_names_keys_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", RECA, "dataset.preprocessing.random_flip=true"]) == 0
    line = "without effect: dataset.preprocessing.random_flip = True: captions say left and right"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "config", "tokenizer"])
@pytest.mark.parametrize("words", [["--help"], ["-h"], [RECA, "--help"]])
def test_help(name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """These commands have no parser of options, but ``showo-dist COMMAND --help`` is for all of them."""
    assert main([name, *words]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"usage: showo-dist {name} config=FILE") and not printed.err


def test_prints_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", RECA, "training.down_scale=1"]) == 0
    assert "warning: training.down_scale = 1" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_code_2() -> None:
    command = [sys.executable, "-m", "showo_dist.cli", "config", RECA, "training.sed=1"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines() == [
        "showo-dist config: training.sed = 1: unknown key; nearest known: training.seed"
    ]


def test_reading_a_config_loads_no_model_library() -> None:
    code = "import showo_dist.config.cli, sys; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "False"
