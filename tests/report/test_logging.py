"""The log of a run: files with each step once, progress lines, and wandb, whose failures are one line."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from showo_dist.logging import RunLogger, read_metrics
from showo_dist.logging.wandb_run import effective_mode

# Logs like a small training run; its only argument is the run's folder.
_SCRIPT = """
import sys
from pathlib import Path
from showo_dist.logging import RunLogger
with RunLogger(Path(sys.argv[1]), rank=0, total_steps=4, start_step=0, config={}, project="p",
               name="mini", wandb_mode="disabled", plain_every_s=3600) as logger:
    for step in range(1, 5):
        logger.log(step, {"loss": 1 / step, "loss/t2i": 0.5, "tokens_per_s": 12345.0})
    logger.event("saved [bold]checkpoint[/bold]")
"""


def _logger(folder: Path, rank: int = 0, start_step: int = 0, **more: Any) -> RunLogger:
    options: dict[str, Any] = {"wandb_mode": "disabled", "total_steps": 20, **more}
    return RunLogger(
        folder, rank=rank, start_step=start_step, config={"a": 1}, project="p", name="n", **options
    )


def _events(folder: Path) -> list[str]:
    return [
        json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()
    ]


def test_resume_leaves_one_line_per_step(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        for step in range(1, 8):
            logger.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "los')  # killed in the middle of a line
    with _logger(tmp_path, start_step=5) as logger:
        for step in range(6, 10):
            logger.log(step, {"loss": 100.0 + step})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 10))
    assert [record["loss"] for record in records] == [1, 2, 3, 4, 5, 106, 107, 108, 109]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9


def test_lines_are_on_disk_before_close(tmp_path: Path) -> None:
    logger = _logger(tmp_path)
    logger.log(3, {"loss": 1.5, "lr": 1e-3})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (record["step"], record["loss"], record["lr"]) == (3, 1.5, 1e-3)
    logger.close()


def test_not_finite_numbers_are_null(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        logger.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (record["loss"], record["grad_norm"], record["lr"]) == (None, None, 0.1)


def test_other_ranks_write_and_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with _logger(tmp_path / "run", rank=1, wandb_mode="offline") as logger:
        logger.log(1, {"loss": 1.0})
        logger.event("hello")
        logger.images(1, "t2i", Image.new("RGB", (4, 4)), "a circle")
        assert logger.wandb_id is None
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_image_carries_its_caption(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        logger.images(12, "t2i", Image.new("RGB", (4, 4), "red"), "ein Kreis – «a circle»")
    with Image.open(tmp_path / "images" / "t2i-000012.png") as image:
        assert image.info["caption"] == "ein Kreis – «a circle»"
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_plain_lines_without_terminal(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "FORCE_COLOR": "1"},
    )
    first, last, event = run.stdout.splitlines()
    assert first.startswith("mini: step 1/4  loss 1.000  t2i 0.500  12,345 tokens/s  ETA ")
    assert last.startswith("mini: step 4/4  loss 0.250")
    assert event == "mini: saved [bold]checkpoint[/bold]"
    assert "\x1b" not in run.stdout


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "140"}
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    subprocess.run(command, stdout=terminal, stderr=terminal, timeout=60, check=True, env=env)
    os.close(terminal)
    shown = os.read(screen, 100_000).decode()
    os.close(screen)
    assert "4/4" in shown and "\x1b" in shown
    assert "saved [bold]checkpoint[/bold]" in shown


@pytest.mark.parametrize(
    ("environment", "netrc_line", "expected"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", "online"),
        ({}, "machine api.wandb.ai login user password key", "online"),
        ({}, "machine elsewhere.example login user password key", "offline"),
        ({"WANDB_BASE_URL": "https://elsewhere.example"}, "machine elsewhere.example password k", "online"),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "", "offline"),
    ],
)  # fmt: skip
def test_auto_mode(
    environment: dict[str, str],
    netrc_line: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(netrc_line)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert effective_mode("auto") == expected
    assert effective_mode("disabled") == "disabled"


def test_unknown_mode_is_named_on_every_rank(tmp_path: Path) -> None:
    for rank in (0, 1):
        with pytest.raises(ValueError, match=r"wandb\.mode = 'of'"):
            _logger(tmp_path, rank=rank, wandb_mode="of")


def test_offline_run_resumes_with_its_id(tmp_path: Path) -> None:
    with _logger(tmp_path, wandb_mode="offline") as logger:
        logger.log(1, {"loss": 1.0})
        logger.images(1, "t2i", Image.new("RGB", (4, 4)), "a circle")
        first = logger.wandb_id
    assert first
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb"))
    with _logger(tmp_path, wandb_mode="offline", start_step=1, wandb_id=first) as logger:
        assert logger.wandb_id == first
    assert not (tmp_path / "events.jsonl").read_text()


def test_a_failing_wandb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _logger(tmp_path, wandb_mode="offline") as logger:
        monkeypatch.setattr(wandb.Run, "log", _refuse)
        for step in (1, 2, 3):
            logger.log(step, {"loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert _events(tmp_path) == ["wandb failed and is not used any more: no quota"]


def test_wandb_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "init", _refuse)
    with _logger(tmp_path, wandb_mode="offline") as logger:
        logger.log(1, {"loss": 1.0})
        assert logger.wandb_id is None
    assert _events(tmp_path) == ["wandb cannot start offline: no quota"]


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("no quota\nmore of it")
