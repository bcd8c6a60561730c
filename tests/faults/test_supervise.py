"""The supervisor: when it restarts, on which ranks, and which signals and codes it passes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from showo_dist.logging import read_metrics
from showo_launch.exit_codes import DONE, NON_FINITE, PREEMPTED, USER_ERROR
from showo_launch.supervise import Shape, Supervisor
from tests.faults.processes import start
from tests.forks import free_port
from tests.training.conftest import TinyWorld

ROOT = Path(__file__).resolve().parents[2]
SUPERVISE = str(ROOT / "launchers" / "supervise")
LIMIT_S = 600.0  # for anything, on a busy machine

# A fake launcher: records its arguments, reports as a rank does, and exits with the next code of a list.
LAUNCHER = """
import os, pathlib, sys, time
from showo_dist.runtime.exits import report
notes, codes, *arguments = sys.argv[1:]
path = pathlib.Path(notes)
starts = path.read_text().splitlines() if path.exists() else []
path.write_text("\\n".join([*starts, " ".join(arguments)]))
for name in ("SHOWO_STARTED", "CUDA_VISIBLE_DEVICES"):
    with open(f"{notes}-{name}", "a") as values:
        print(os.environ.get(name), file=values)
own, reported, *lost = map(int, codes.split(",")[len(starts)].split(":"))
report(reported, lost)
sys.exit(own)
"""


def _supervised(
    tmp_path: Path, codes: str, *options: str, arguments: tuple[str, ...] = ("x",)
) -> tuple[int, list[str], str]:
    """Exit code, the arguments of every start, and stderr.

    Args:
        tmp_path: for notes.
        codes: of each start ``LAUNCHER:RANK[:LOST …]``, joined by commas.
        options: of the supervisor.
        arguments: of the command.
    """
    notes = tmp_path / "notes"
    command = [sys.executable, "-c", LAUNCHER, str(notes), codes, *arguments]
    done = subprocess.run(
        [SUPERVISE, "--delay", "0", *options, "--", *command],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    starts = notes.read_text().split("\n") if notes.exists() else []
    return done.returncode, starts, done.stderr


@pytest.mark.parametrize(
    ("codes", "starts", "code"),
    [
        ("0:0", 1, DONE),
        ("1:76,0:0", 2, DONE),
        ("1:76,1:76,1:76,1:76", 4, 1),
        ("2:2", 1, USER_ERROR),
        ("1:2", 1, USER_ERROR),
        ("1:77", 1, NON_FINITE),
        ("75:75", 1, PREEMPTED),
        ("1:75", 1, PREEMPTED),
        ("76:76,75:75", 2, PREEMPTED),
    ],
)
def test_restarts_only_where_that_may_help(
    tmp_path: Path, codes: str, starts: int, code: int
) -> None:
    before = time.time()
    found = _supervised(tmp_path, codes, "--restarts", "3")
    assert (found[0], len(found[1])) == (code, starts), found[2]
    began = (tmp_path / "notes-SHOWO_STARTED").read_text().split()
    assert len(began) == starts and len({*began}) == 1, "one time for all starts"
    assert before <= float(began[0]) <= time.time()


def test_the_remaining_ranks_share_the_global_batch(tmp_path: Path) -> None:
    code, starts, stderr = _supervised(
        tmp_path,
        "76:76:2,76:76:0,0:0",
        *("--restarts", "3", "--ranks", "4", "--on-ranks-left"),
        arguments=("--n={ranks}", "--a={accumulation}", "--d={devices}", "{000..001}.tar"),
    )
    assert code == DONE, stderr
    assert starts == [
        "--n=4 --a=1 --d=0,1,2,3 {000..001}.tar",
        "--n=2 --a=2 --d=0,1 {000..001}.tar",
        "--n=1 --a=4 --d=1 {000..001}.tar",
    ]
    assert "restarting on 2 ranks, accumulation 2; 2 restarts are left" in stderr
    visible = (tmp_path / "notes-CUDA_VISIBLE_DEVICES").read_text().split()
    assert visible == [os.environ.get("CUDA_VISIBLE_DEVICES", "None"), "0,1", "1"]


def test_devices_alone_select_the_ranks(tmp_path: Path) -> None:
    """As DeepSpeed's launcher takes them on GPUs."""
    code, starts, stderr = _supervised(
        tmp_path,
        "76:76:0,0:0",
        *("--ranks", "2", "--on-ranks-left"),
        arguments=("--include", "localhost:{devices}"),
    )
    assert code == DONE, stderr
    assert starts == ["--include localhost:0,1", "--include localhost:1"]


# Ranks 2 and 3 are dead and hung; rank 1 reports an error of its own.
REPORTS = """
import json, os, pathlib, sys
reports = {0: (76, [1, 2, 3]), 1: (1, []), 3: (76, [3])}
for rank, (code, lost) in reports.items():
    path = pathlib.Path(os.environ["SHOWO_DIST_REPORTS"]) / f"rank-{rank:05d}.json"
    path.write_text(json.dumps({"pid": 1, "code": code, "lost": lost}))
sys.exit(1)
"""


def test_a_rank_that_failed_by_itself_is_not_lost(tmp_path: Path) -> None:
    supervisor = Supervisor([sys.executable, "-c", REPORTS], tmp_path)
    ending = supervisor.run(Shape(4, 1, tuple("0123")))
    assert (ending.code, ending.lost) == (1, {2, 3})


def test_a_signal_before_the_launcher_starts_is_not_lost(tmp_path: Path) -> None:
    supervisor = Supervisor(["sleep", "30"], tmp_path)
    supervisor.pass_on(signal.SIGTERM, None)
    assert supervisor.run(Shape(1, 1, ("0",))).code == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_the_end_of_the_terminal_ends_the_run_unless_by_nohup(
    tmp_path: Path, ignored: bool
) -> None:
    nohup = ["nohup"] if ignored else []
    begun = tmp_path / "begun"
    command = [*nohup, SUPERVISE, "--", "sh", "-c", f"echo $$ >{begun}; exec sleep 60"]
    supervised = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until(lambda: begun.exists() and begun.read_text().endswith("\n"))
        supervised.send_signal(signal.SIGHUP)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                supervised.wait(2)
            supervised.terminate()
        supervised.wait(LIMIT_S)
        assert supervised.returncode >= 0, "it died of the signal"
        assert not Path(f"/proc/{begun.read_text().strip()}").exists()
    finally:
        supervised.kill()


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("accumulation", [1, 2, 3, 4])
def test_the_number_of_micro_steps_is_constant(ranks: int, accumulation: int) -> None:
    devices = tuple(f"gpu{rank}" for rank in range(ranks))
    whole = Shape(ranks, accumulation, devices)
    for lost in range(ranks):
        if ranks == 1:
            with pytest.raises(ValueError, match="all 1 ranks are lost"):
                whole.without({lost})
            continue
        left = whole.without({lost})
        assert left.ranks * left.accumulation == ranks * accumulation
        assert left.ranks < ranks and f"gpu{lost}" not in left.devices
        assert len(set(left.devices)) == left.ranks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--restarts", "1"], "give the command to supervise after --"),
        (["--on-ranks-left", "--", "true"], "must contain {ranks}"),
        (
            ["--on-ranks-left", "--", "deepspeed", "--num_gpus", "{ranks}"],
            "--num_gpus {ranks}: DeepSpeed",
        ),
        (
            ["--on-ranks-left", "--", "deepspeed", "--num_gpus={ranks}"],
            "write --include localhost:{devices}",
        ),
        (["--restarts", "-1", "--", "true"], "--restarts -1: expected 0 or more"),
        (["--ranks", "0", "--", "true"], "--ranks 0: expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    done = subprocess.run([SUPERVISE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == USER_ERROR
    assert done.stderr.count("\n") == 1 and words in done.stderr


def _training(launcher: str, world: TinyWorld, run: Path) -> list[str]:
    """The commands of docs/faults.md, for a CPU."""
    port = str(free_port())
    start = {
        "torchrun": ["--nproc-per-node", "{ranks}", "--master-port", port, "-m"],
        "deepspeed": ["--num_gpus", "{ranks}", "--master_port", port, "--module"],
    }[launcher]
    return [
        *(str(Path(sys.executable).parent / launcher), *start),
        *("showo_dist.train", f"config={world.config}", f"experiment.output_dir={run}"),
        "training.gradient_accumulation_steps={accumulation}",
        *_SMALL,
    ]


_SMALL = ["training.max_train_steps=30", "experiment.save_every=5", "fault.timeout_s=20"]


def _wait_until(found: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_S
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)


def _wait_for_step(run: Path, step: int) -> None:
    metrics = run / "metrics.jsonl"
    _wait_until(lambda: any(line["step"] >= step for line in read_metrics(metrics)))


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):  # it has just ended
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _rank_of(pid: int) -> int | None:
    """The rank in a process's environment; None if it is not a rank."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")), None)


def _ranks_of(supervisor: int) -> dict[int, int]:
    """Process ids by rank, of the nearest descendants of the supervisor that are ranks."""
    found, seen = {}, _children(supervisor)
    while seen:
        pid = seen.pop()
        rank = _rank_of(pid)
        if rank is None:
            seen += _children(pid)
        else:
            found[rank] = pid
    return found


@contextmanager
def _supervising(*arguments: str) -> Iterator[subprocess.Popen]:
    """Run the supervisor; it is terminated when the context closes."""
    supervised = subprocess.Popen(
        [SUPERVISE, "--delay", "0", "--ranks", "2", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield supervised
    finally:
        while supervised.poll() is None:
            supervised.terminate()
            time.sleep(1)


@pytest.fixture(scope="module")
def undisturbed(
    tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """Losses of the same run on two ranks, undisturbed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    arguments = [f"config={tiny_world.config}", f"experiment.output_dir={run}", *_SMALL]
    life = start(arguments, run, 2)
    assert life.codes(LIMIT_S) == [0, 0], life.printed()
    return _losses(run)


def _losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(run / "metrics.jsonl")}


launchers = pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])


@pytest.mark.slow
@launchers
def test_a_run_resumes_without_the_rank_that_died(
    tiny_world: TinyWorld, undisturbed: dict[int, float], tmp_path: Path, launcher: str
) -> None:
    run = tmp_path / "run"
    command = ["--restarts", "1", "--on-ranks-left", "--", *_training(launcher, tiny_world, run)]
    with _supervising(*command) as supervised:
        _wait_for_step(run, 7)
        os.kill(_ranks_of(supervised.pid)[1], signal.SIGKILL)
        stderr = supervised.communicate(timeout=LIMIT_S)[1]
    assert supervised.returncode == 0, stderr[-3000:]
    assert "rank 1 (host " in stderr and "restarting on 1 ranks, accumulation 2" in stderr
    assert _losses(run) == pytest.approx(undisturbed, rel=1e-4)


@pytest.mark.slow
@launchers
def test_a_signal_to_the_supervisor_reaches_the_ranks(
    tiny_world: TinyWorld, tmp_path: Path, launcher: str
) -> None:
    run = tmp_path / "run"
    command = _training(launcher, tiny_world, run)
    with _supervising("--restarts", "5", "--", *command) as supervised:
        _wait_for_step(run, 2)
        supervised.send_signal(signal.SIGTERM)
        stderr = supervised.communicate(timeout=LIMIT_S)[1]
    assert supervised.returncode == PREEMPTED, stderr[-3000:]
    assert "stopped and saved after step" in stderr
