"""Stages of commands, run in order; the finished ones are remembered in a file."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """One step of a story.

    Attributes:
        name: what it is called in the log and in the file of finished stages.
        commands: run side by side; the stage fails if one fails.
    """

    name: str
    commands: list[list[str]]

    @property
    def lines(self) -> list[str]:
        """The commands as a shell would take them."""
        return [shlex.join(command) for command in self.commands]


def tool(*arguments: str) -> list[str]:
    """A ``showo-dist`` command in a process of its own."""
    return [sys.executable, "-m", "showo_dist.cli", *arguments]


def launched(launcher: list[str], *arguments: str) -> list[str]:
    """A launcher of this Python's environment, as ``["torchrun", "-m", "module"]``, with arguments."""
    program = Path(sys.executable).parent / launcher[0]
    known = str(program) if program.exists() else launcher[0]
    return [known, *launcher[1:], *arguments]


class StageRunner:
    """Runs stages and remembers the finished ones.

    Args:
        record: JSON file of the finished stages: name to command lines and seconds.
        digest: of the config files behind a stage: a changed config is another stage.
    """

    def __init__(self, record: Path, digest: Callable[[Stage], str]) -> None:
        self.record, self._digest = record, digest
        self.done: dict[str, dict] = json.loads(record.read_text()) if record.is_file() else {}

    def _made_by(self, stage: Stage) -> dict:
        return {"commands": stage.lines, "configs": self._digest(stage)}

    def run(self, stage: Stage) -> None:
        """Run a stage unless it was finished with the same commands and config files.

        Raises:
            RuntimeError: a command of it failed.
        """
        if self._made_by(stage).items() <= self.done.get(stage.name, {}).items():
            print(f"== {stage.name}: done before", flush=True)
        else:
            self.perform(stage)

    def perform(self, stage: Stage) -> None:
        """Run a stage in any case.

        Raises:
            RuntimeError: a command of it failed.
        """
        made_by = self._made_by(stage)
        print(f"== {stage.name}", flush=True)
        start = time.perf_counter()
        _run_side_by_side(stage)
        seconds = time.perf_counter() - start
        print(f"== {stage.name}: {seconds:.0f} s", flush=True)
        self.done[stage.name] = {**made_by, "seconds": round(seconds, 1)}
        self._write()

    def _write(self) -> None:
        """In one rename, so that a kill leaves the old record or the new one."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        aside = self.record.with_name(f".{self.record.name}.partial")
        aside.write_text(json.dumps(self.done, indent=1) + "\n")
        aside.replace(self.record)


def _threads(processes: int) -> dict[str, str]:
    """An environment in which side-by-side processes share the cores evenly."""
    cores = len(os.sched_getaffinity(0))
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes))}


def _run_side_by_side(stage: Stage) -> None:
    alone = len(stage.commands) == 1
    environment = dict(os.environ) if alone else _threads(len(stage.commands))
    running = [subprocess.Popen(command, env=environment) for command in stage.commands]
    codes = [process.wait() for process in running]
    for line, code in zip(stage.lines, codes, strict=True):
        if code:
            raise RuntimeError(f"{stage.name}: exit code {code} of {line}")
