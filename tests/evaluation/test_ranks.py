"""Real processes: three ranks, a kill in the middle, a rank that fails."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from showo_dist import cli
from showo_dist.evaluation.cli import main

PROMPTS, SAMPLES = 7, 2
_LIMIT_S = 600


@pytest.fixture(scope="module")
def prompts(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (world / "prompts.jsonl").read_text().splitlines()[:PROMPTS]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def _arguments(checkpoint: Path, prompts: Path, out: Path) -> list[str]:
    arguments = ["--framework", "geneval", str(checkpoint), "--prompts", str(prompts)]
    options = ["--samples", str(SAMPLES), "--batch", str(SAMPLES), "--steps", "30"]
    return [*arguments, *options, "--device", "cpu", "--out", str(out)]


def _files(folder: Path) -> dict[str, bytes]:
    """Everything that the scorer reads."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("0*/**/*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def one_rank(checkpoint: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    assert main(_arguments(checkpoint, prompts, out)) == 0
    return out


def _torchrun(ranks: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--master-port", str(port)]
    module = ["--nproc-per-node", str(ranks), "-m", "showo_dist.cli", "evaluate"]
    with subprocess.Popen(
        [*torchrun, *module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            shown, errors = process.communicate(timeout=_LIMIT_S)
        finally:
            process.terminate()  # torchrun ends its ranks with it
    return subprocess.CompletedProcess(process.args, process.returncode, shown, errors)


def test_three_ranks_leave_the_same_files(
    checkpoint: Path, prompts: Path, one_rank: Path, tmp_path: Path
) -> None:
    done = _torchrun(3, _arguments(checkpoint, prompts, tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = _files(one_rank)
    assert len(wanted) == PROMPTS * (SAMPLES + 1)
    assert _files(tmp_path / "out") == wanted
    assert done.stdout.count("ready to be scored") == 1


def _stop_in_the_middle(arguments: list[str], out: Path) -> None:
    """Kill an evaluation once it has left some images."""
    command = [sys.executable, "-m", "showo_dist.cli", "evaluate", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + _LIMIT_S
        while len(list(out.glob("*/samples/0*.png"))) < SAMPLES + 1:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)


def test_killed_and_started_again(
    checkpoint: Path, prompts: Path, one_rank: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = _arguments(checkpoint, prompts, out)
    _stop_in_the_middle(arguments, out)
    before = {path: path.stat() for path in out.glob("*/samples/0*.png")}
    assert SAMPLES < len(before) < PROMPTS * SAMPLES
    half = out / "00006" / "samples" / ".00001.png.4711.partial"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(next(iter(before)).read_bytes()[:100])
    assert main(arguments) == 0
    for path, stat in before.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), "made twice"
    assert _files(out) == _files(one_rank)
    assert not half.exists()


def test_a_rank_that_fails_fails_the_run(
    checkpoint: Path, prompts: Path, one_rank: Path, tmp_path: Path
) -> None:
    """Prompt 1 belongs to rank 1; a folder stands where its first image should go."""
    out = tmp_path / "out"
    (out / "00001" / "samples" / "00000.png").mkdir(parents=True)
    record = json.loads((one_rank / "evaluation.json").read_text())
    (out / "evaluation.json").write_text(json.dumps(record))
    done = _torchrun(2, _arguments(checkpoint, prompts, out))
    assert done.returncode != 0
    assert f"rank 1 on {socket.gethostname()}" in done.stderr and "00000.png" in done.stderr


def test_deepspeed_puts_the_rank_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--local_rank=1", "--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
