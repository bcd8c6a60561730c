"""A data worker that dies, at any moment: the right rank is named, and the restarted run is the same one."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from showo_dist.logging import read_metrics
from showo_launch.exit_codes import MACHINE_ERROR, RANK_LOST
from tests.faults.chaos import LIMIT_S, WORLD, Chaos
from tests.faults.processes import Life, start
from tests.faults.test_chaos import _arguments, _tensors
from tests.faults.test_supervise import (
    _children,
    _losses,
    _ranks_of,
    _supervising,
    _training,
    _wait_for_step,
    undisturbed,
)
from tests.training.conftest import TinyWorld

__all__ = ["undisturbed"]
WORKERS = 2
KINDS = ("first", "start", "step", "step", "folder", "rename")


class DyingWorkers(Chaos):
    """A run of which one data worker is killed in every life but the last."""

    def _start(self) -> Life:
        arguments = [*self.arguments, f"experiment.output_dir={self.run}"]
        arguments += [f"dataset.params.num_workers={WORKERS}", "training.pack_ahead=true"]
        return start(arguments, self.run, WORLD, len(self.kills))

    def _one_life(self, kills_left: int) -> Life:
        roomy = self.steps - self._reached > 5 * kills_left
        kind = self.rng.choice(KINDS) if roomy else "first"
        victim = len(self.kills) % WORLD  # both ranks, also when few workers are killed
        life = self._start()
        try:
            pid = self._await_worker(life, victim)
            if kind == "start":
                time.sleep(self.rng.uniform(0, 1))
            elif kind == "step":
                self._await_step(life)
            elif kind == "folder":
                self._await_folder(life)
            elif kind == "rename":
                self._await_rename(life)
            os.kill(pid, signal.SIGKILL)
            codes = life.codes(LIMIT_S)
        finally:
            life.end()
        other = 1 - victim
        assert (codes[victim], codes[other]) == (MACHINE_ERROR, RANK_LOST), life.printed()
        (line,) = [x for x in life.printed(other).splitlines() if x.startswith("showo_dist.train")]
        assert f"rank {victim} (host " in line and " failed in " in line, line
        assert "data worker died " in line and str(pid) in line, line
        assert "RuntimeError" not in life.printed(), life.printed()
        self.kills.append((kind, (victim,)))
        return life

    def _await_worker(self, life: Life, rank: int) -> int:
        """Wait until the rank has all its workers; returns the process id of one of them."""
        until = time.monotonic() + LIMIT_S
        while len(workers := _children(life.processes[rank].pid)) < WORKERS:
            assert time.monotonic() < until and life.processes[rank].is_alive(), life.printed()
            time.sleep(0.0005)
        return self.rng.choice(workers)


def _survives(world: TinyWorld, folder: Path, kills: int, seed: int) -> None:
    steps = 6 * kills
    arguments = _arguments(world, steps)
    whole = folder / "whole"  # without workers: they must not change anything
    life = start([*arguments, f"experiment.output_dir={whole}"], whole, WORLD)
    assert life.codes(LIMIT_S + steps) == [0] * WORLD, life.printed()
    reference = {line["step"]: line for line in read_metrics(whole / "metrics.jsonl")}
    rng = random.Random(f"workers/{seed}")
    chaos = DyingWorkers(arguments, folder / "killed", steps, {"t2i": 1, "lm": 1}, reference, rng)
    chaos.run_with_kills(kills)
    lines = read_metrics(chaos.run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1)), "each step once, in order"
    assert _tensors(chaos.run) == _tensors(whole)
    kinds, ranks = Counter(kind for kind, _ in chaos.kills), Counter(r for _, r in chaos.kills)
    print(
        f"{kills} workers killed {dict(kinds)}, of ranks {dict(ranks)}; {chaos.repeated} steps repeated"
    )


@pytest.mark.slow
def test_five_workers_die(tiny_world: TinyWorld, tmp_path: Path) -> None:
    _survives(tiny_world, tmp_path, kills=5, seed=0)


@pytest.mark.chaos
def test_a_hundred_workers_die(tiny_world: TinyWorld, tmp_path: Path) -> None:
    _survives(tiny_world, tmp_path, kills=100, seed=1)


@pytest.mark.slow
def test_the_supervisor_restarts_after_a_dead_worker(
    tiny_world: TinyWorld, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*_training("deepspeed", tiny_world, run), f"dataset.params.num_workers={WORKERS}"]
    with _supervising("--restarts", "1", "--", *command) as supervised:
        _wait_for_step(run, 7)
        os.kill(_children(_ranks_of(supervised.pid)[1])[0], signal.SIGKILL)
        stderr = supervised.communicate(timeout=LIMIT_S)[1]
    assert supervised.returncode == 0, stderr[-3000:]
    assert "data worker died" in stderr and "restarting on 2 ranks" in stderr
    assert _losses(run) == undisturbed
