"""Dead, frozen and failed ranks in real processes: the others stop in time with one line that names them."""

import os
import signal
import time
from pathlib import Path

import pytest

from showo_dist.checkpoint import complete_checkpoints
from showo_launch.exit_codes import PREEMPTED, RANK_LOST, USER_ERROR
from tests.faults.processes import Life, start
from tests.training.conftest import TinyWorld

LIMIT_S = 600.0
TIMEOUT_S = 30.0
ENDLESS = 1_000_000
# Heartbeats are read once a second; the others must know a rank's step before it is lost.
HEARD_S = 3.0


def _running(world: TinyWorld, run: Path, ranks: int, *changes: str) -> Life:
    """A training in its third step or later, of which all ranks have heartbeats."""
    arguments = [
        f"config={world.config}",
        f"experiment.output_dir={run}",
        f"training.max_train_steps={ENDLESS}",
        f"fault.timeout_s={TIMEOUT_S}",
        "training.batch_size_mmu=-1",
        "training.batch_size_recon=-1",
        *changes,
    ]
    life = start(arguments, run, ranks)
    try:
        life.wait_for_step(3, LIMIT_S)
        time.sleep(HEARD_S)
    except BaseException:
        life.end()
        raise
    return life


def _only_line(life: Life) -> str:
    printed = life.printed()
    assert "Traceback" not in printed, printed
    lines = [line for line in printed.splitlines() if line.startswith("showo_dist.train")]
    assert len(lines) == 1, printed
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim", "ranks"),
    [(signal.SIGSTOP, 2, 4), (signal.SIGSTOP, 0, 2), (signal.SIGKILL, 0, 2)],
    ids=["frozen", "frozen-host-of-the-store", "dead-host-of-the-store"],
)
def test_a_lost_rank_is_named_in_time(
    tiny_world: TinyWorld, tmp_path: Path, number: int, victim: int, ranks: int
) -> None:
    life = _running(tiny_world, tmp_path / "run", ranks)
    try:
        began = time.monotonic()
        life.send(number, victim)
        survivors = [rank for rank in range(ranks) if rank != victim]
        codes = life.codes(LIMIT_S, survivors)
        seconds = time.monotonic() - began
    finally:
        life.end()
    assert codes == [RANK_LOST] * len(survivors), life.printed()
    assert seconds < TIMEOUT_S
    line = _only_line(life)
    assert f"rank {victim} (host " in line and f"pid {life.processes[victim].pid})" in line
    assert " of step " in line
    for rank in survivors:
        (stacks,) = (life.run / "faults").glob(f"step-*-rank-{rank:05d}.txt")
        text = stacks.read_text()
        assert text.startswith(f"rank {victim} (host ")
        assert "trainer.py" in text and "most recent call first" in text
        (collectives,) = (life.run / "faults").glob(f"step-*-rank-{rank:05d}-collectives.json")
        assert "all_reduce" in collectives.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim", "ranks"),
    [(signal.SIGTERM, 3, 4), (signal.SIGUSR1, 0, 2), (signal.SIGINT, 1, 2)],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)
def test_a_signal_to_one_rank_saves_and_stops_all(
    tiny_world: TinyWorld, tmp_path: Path, number: int, victim: int, ranks: int
) -> None:
    life = _running(tiny_world, tmp_path / "run", ranks)
    life.send(number, victim)
    codes = life.codes(LIMIT_S)
    assert codes == [PREEMPTED] * ranks, life.printed()
    (checkpoint,) = complete_checkpoints(life.run)
    step = int(checkpoint.name[-6:])
    assert step >= 3
    wanted = f"stopped and saved after step {step} ({signal.Signals(number).name} on rank {victim})"
    assert wanted in _only_line(life)


@pytest.mark.slow
def test_data_workers_outlive_the_signals_that_stop_their_rank(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """Launchers and terminals signal all processes."""
    life = _running(tiny_world, tmp_path / "run", 2, "dataset.params.num_workers=1")
    for rank in (0, 1):
        for pid in [*_children(life.processes[rank].pid), life.processes[rank].pid]:
            os.kill(pid, signal.SIGTERM)
    assert life.codes(LIMIT_S) == [PREEMPTED, PREEMPTED], life.printed()
    _only_line(life)


@pytest.mark.slow
def test_a_users_mistake_on_one_rank_is_one_line(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Only rank 0 writes events, and here it cannot."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "events.jsonl").mkdir()
    arguments = [f"config={tiny_world.config}", f"experiment.output_dir={run}"]
    life = start(arguments, run, 2)
    assert life.codes(LIMIT_S) == [USER_ERROR, USER_ERROR], life.printed()
    assert "events.jsonl" in _only_line(life)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
