"""Kill the ranks of a run at random moments, restart it, and check what each life of it left behind."""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from showo_dist.checkpoint import CheckpointReader, complete_checkpoints
from showo_dist.checkpoint.folders import latest
from showo_dist.logging import read_metrics
from showo_launch.exit_codes import RANK_LOST
from tests.faults.processes import KILLED, Life, start

LIMIT_S = 600.0  # for anything, on a busy machine
KEYS = ("loss", "loss/t2i", "loss/lm", "grad_norm", "masking_rate/t2i")
WORLD = 2
KINDS = ("start", "step", "step", "folder", "rename")


@dataclass
class Chaos:
    """One run that is killed and restarted; a life is the time between a start and the next kill.

    Attributes:
        arguments: of the training, without the run's folder.
        run: the run's folder.
        steps: of the whole run.
        batches: samples per rank and step of each flow.
        reference: metrics of the undisturbed run by step.
        rng: decides the kills.
        kills: kind and killed ranks of each kill so far.
        repeated: steps that a life logged and a later one repeated.
        torn: kills that interrupted an operation, by the operation: a checkpoint was being written
            (``partial``) or removed (``deleted``), or ``latest`` does not name a complete one yet.
    """

    arguments: list[str]
    run: Path
    steps: int
    batches: dict[str, int]
    reference: dict[int, dict[str, float]]
    rng: random.Random
    kills: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    repeated: int = 0
    torn: Counter[str] = field(default_factory=Counter)
    _reached: int = 0

    def run_with_kills(self, kills: int) -> None:
        """Kill the run ``kills`` times, then let it end."""
        while len(self.kills) < kills:
            self._check(self._one_life(kills - len(self.kills)))
        life = self._start()
        assert life.codes(LIMIT_S + self.steps) == [0] * WORLD, life.printed()
        self._check(life)

    def _start(self) -> Life:
        arguments = [*self.arguments, f"experiment.output_dir={self.run}"]
        return start(arguments, self.run, WORLD, len(self.kills))

    def _one_life(self, kills_left: int) -> Life:
        # Before the ranks are connected only a launcher notices a dead one: both are killed then.
        roomy = self.steps - self._reached > 5 * kills_left
        kind = self.rng.choice(KINDS) if roomy else "start"
        victims = (0, 1) if kind == "start" else self.rng.choice([(0,), (1,), (0, 1), (0, 1)])
        left_before = self._left()
        life = self._start()
        try:
            moments: dict[str, Callable[[], None]] = {
                "start": lambda: time.sleep(self.rng.uniform(0, 3)),
                "step": lambda: self._await_step(life),
                "folder": lambda: self._await_folder(life),
                "rename": lambda: self._await_rename(life),
            }
            moments[kind]()
            life.send(signal.SIGKILL, *victims)
            codes = life.codes(LIMIT_S)
        finally:
            life.end()
        survivors = [rank for rank in range(WORLD) if rank not in victims]
        assert [codes[rank] for rank in victims] == [KILLED] * len(victims), life.printed()
        assert [codes[rank] for rank in survivors] == [RANK_LOST] * len(survivors), life.printed()
        for rank in survivors:
            assert f"showo_dist.train: rank {victims[0]} (host " in life.printed(rank)
            assert "Traceback" not in life.printed(rank), life.printed(rank)
        self.kills.append((kind, victims))
        self._note_torn(left_before)
        return life

    def _left(self) -> set[Path]:
        """Folders that interrupted saves and removals left behind; the next start deletes them."""
        return set(self.run.glob(".checkpoint-*"))

    def _note_torn(self, left_before: set[Path]) -> None:
        self.torn.update({path.suffix[1:] for path in self._left() - left_before})
        newest = complete_checkpoints(self.run)[-1:]
        self.torn["latest"] += bool(newest) and newest[0] != latest(self.run)

    def _await_step(self, life: Life) -> None:
        """Wait for one of the first steps after the newest checkpoint."""
        life.wait_for_setup(LIMIT_S)  # which removes the metrics of steps to be repeated
        saved = [int(path.name.rpartition("-")[2]) for path in complete_checkpoints(self.run)]
        life.wait_for_step(max(saved, default=0) + self.rng.randint(1, 4), LIMIT_S)
        time.sleep(self.rng.uniform(0, 0.1))

    def _await_folder(self, life: Life) -> None:
        """Wait until a checkpoint is being written, renamed or removed."""
        for _ in range(self.rng.randint(1, 4)):
            before, until = self._names(), time.monotonic() + LIMIT_S
            while self._names() == before:
                assert time.monotonic() < until and life.processes[0].is_alive(), life.printed()
                time.sleep(0.0005)
        time.sleep(self.rng.choice([0, self.rng.uniform(0, 0.03)]))

    def _await_rename(self, life: Life) -> None:
        """Wait until a folder was renamed: a checkpoint became visible, or is about to be removed."""
        for _ in range(self.rng.randint(1, 4)):
            before, until = self._renamed(), time.monotonic() + LIMIT_S
            while self._renamed() == before:
                assert time.monotonic() < until and life.processes[0].is_alive(), life.printed()

    def _renamed(self) -> set[str]:
        names = os.listdir(self.run) if self.run.is_dir() else []
        return {name for name in names if "checkpoint" in name and not name.endswith(".partial")}

    def _names(self) -> set[str]:
        """Names of all checkpoints in the run's folder, and of the files in an unfinished one."""
        with suppress(FileNotFoundError):  # renamed or removed meanwhile
            top = [path for path in self.run.iterdir() if "checkpoint" in path.name]
            hidden = [path for path in top if path.name.startswith(".") and path.is_dir()]
            return {str(p) for p in [*top, *(f for h in hidden for f in h.iterdir())]}
        return set()

    def _check(self, life: Life) -> None:
        self._check_metrics(life)
        self._check_checkpoints()

    def _check_metrics(self, life: Life) -> None:
        """Every metric of every life equals the undisturbed run's, to the last bit."""
        began = re.search(r" at step (\d+)$", life.printed(0), re.MULTILINE)
        steps = [0]
        for line in read_metrics(self.run / "metrics.jsonl"):
            wanted = self.reference[line["step"]]
            found = {key: line[key] for key in KEYS if key in wanted}
            assert found == {key: wanted[key] for key in KEYS if key in wanted}, line["step"]
            steps.append(line["step"])
        if began:
            own = range(int(began[1]) + 1, steps[-1] + 1)
            self.repeated += sum(step <= self._reached for step in own)
        self._reached = max(self._reached, steps[-1])

    def _check_checkpoints(self) -> None:
        """Every visible checkpoint can be read, and resumes with the sample after its last one."""
        visible = complete_checkpoints(self.run)
        assert latest(self.run) in (None, *visible)
        for path in visible:
            state = CheckpointReader(path).state
            wanted = {flow: state.step * WORLD * size for flow, size in self.batches.items()}
            assert state.positions == wanted, path
