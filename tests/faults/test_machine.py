"""Faults of the machine are not the user's mistakes: other exit codes, and logs that a run outlasts."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from showo_dist import cli
from showo_dist.logging import RunLogger, read_metrics
from showo_dist.runtime.exits import (
    MachineError,
    OneRankError,
    described,
    exit_code_of,
    machine_errors,
)
from showo_dist.runtime.ranks import joined
from showo_launch.exit_codes import MACHINE_ERROR, USER_ERROR
from tests.conftest import ROOT

CONFIG = "configs/mini/pretrain.yaml"
FULL = Path("/dev/full")

RUN = """
import os, sys, time
from showo_dist.runtime.exits import run_and_exit

def run():
    for number in range(3000):
        while number == 3 and sys.argv[2:] and not os.path.exists(sys.argv[2]):
            time.sleep(0.05)
        print("step", number, flush=number % 2 == 0)
    with open(sys.argv[1], "w") as file:
        file.write("done")
    return 0

run_and_exit("test", run)
"""


@pytest.mark.parametrize("kind", [FileNotFoundError, IsADirectoryError, PermissionError])
def test_a_wrong_path_is_the_users(kind: type[OSError]) -> None:
    assert exit_code_of(kind("no file")) == USER_ERROR
    assert exit_code_of(OSError(errno.ENAMETOOLONG, "too long", "x")) == USER_ERROR
    assert exit_code_of(ValueError("no number")) == USER_ERROR


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT, errno.ECONNRESET, errno.EMFILE]
)
def test_other_errors_of_the_system_are_the_machines(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path / "x"))
    assert exit_code_of(error) == MACHINE_ERROR
    assert described(error) == f"{tmp_path / 'x'}: {os.strerror(number)}"
    with pytest.raises(MachineError, match="x: ") as raised, machine_errors():
        raise error
    assert exit_code_of(raised.value) == MACHINE_ERROR


def test_once_a_run_trains_a_lost_path_is_the_machines() -> None:
    with pytest.raises(MachineError) as raised, machine_errors():
        Path("/nowhere/x").read_text()
    assert exit_code_of(raised.value) == MACHINE_ERROR and "/nowhere/x: No such" in str(
        raised.value
    )


def test_a_command_ends_with_the_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, arguments: list[str]) -> int:
        FULL.write_text("x" * 100)
        return 0

    monkeypatch.setattr(cli, "_call", fail)
    assert cli.main(["inspect"]) == MACHINE_ERROR
    line = capsys.readouterr().err
    assert line.startswith("showo-dist inspect: No space left on device") and line.count("\n") == 1


def test_a_rank_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "6"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OneRankError) as raised, joined():
        pass
    line = (
        f"rank 6 (host {socket.gethostname()}): LOCAL_RANK is 2, but this rank sees 2 GPUs; "
        "lower slots"
    )
    assert str(raised.value).startswith(line)


def _start(redirection: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-", "> /dev/full 2>&1", ">&- 2>&- <&-"])
def test_a_run_outlasts_its_output(tmp_path: Path, redirection: str) -> None:
    path = tmp_path / "file"
    ended = _start(redirection, "-c", RUN, str(path))
    assert ended.returncode == 0, ended.stderr
    assert path.read_text() == "done", "prints ended in another file"
    assert ended.stderr.count("\n") == (redirection == "> /dev/full")


def test_a_run_outlasts_the_reader_of_its_output(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    reader = f"| {{ head -n 2; exec <&-; touch {gone}; }}; echo ${{PIPESTATUS[0]}}"
    ended = _start(reader, "-c", RUN, str(tmp_path / "file"), str(gone))
    assert ended.stdout == "step 0\nstep 1\n0\n", ended
    assert ended.stderr == "stdout: Broken pipe; lines are lost, the work continues\n"


def test_a_result_that_cannot_be_printed_is_an_error() -> None:
    wanted = ["showo-dist config: stdout: No space left on device"]
    for redirection in ("> /dev/full", "| head -n 0; exit ${PIPESTATUS[0]}"):
        ended = _start(redirection, "-m", "showo_dist.cli", "config", CONFIG)
        assert ended.returncode == MACHINE_ERROR
        lines = ended.stderr.splitlines()
        assert [line for line in lines if "showo-dist" in line or "Broken" in line] == wanted, lines
        wanted = []


def test_a_log_on_a_full_disk_is_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"config": {}, "project": "p", "name": "n", "wandb_mode": "disabled"}
    logger = RunLogger(tmp_path, rank=0, total_steps=9, start_step=0, **settings)
    logger.log(1, {"loss": 1.0})
    files: Any = logger._sinks[0]
    sound = files._metrics
    with FULL.open("w") as files._metrics:
        for step in (2, 3):
            logger.log(step, {"loss": 1.0})
        files._metrics, full = sound, files._metrics
        logger.log(4, {"loss": 1.0})
        with pytest.raises(OSError, match="No space"):
            full.close()
    logger.close()
    warnings = capsys.readouterr().err
    assert warnings == (
        "/dev/full: No space left on device; lines of the log are lost, the run continues\n"
    )
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 4]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["loss"] == 1.0
