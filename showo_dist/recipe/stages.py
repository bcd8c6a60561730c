"""Run stages of commands in order, and record the finished ones in a file."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from showo_data.files import written_aside
from showo_data.loader import end_with_parent


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: of the stage, in the log and in the file of finished stages.
        commands: run in parallel; the stage fails if one of them fails.
        finished: looks whether it is done; None: if it was finished with the same commands and config.
        final: of a training: the last folder that it writes, with which it is done; its parent is the run's.
    """

    name: str
    commands: list[list[str]]
    finished: Callable[[], bool] | None = None
    final: Path | None = None

    @property
    def lines(self) -> list[str]:
        """The commands as shell command lines."""
        return [shlex.join(command) for command in self.commands]


def tool(*arguments: str) -> list[str]:
    """The command line of a ``showo-dist`` command, with this Python."""
    return [sys.executable, "-m", "showo_dist.cli", *arguments]


def launched(launcher: list[str], *arguments: str) -> list[str]:
    """A launcher and its arguments; this Python's environment is searched for the launcher first.

    Args:
        launcher: for example ``["torchrun", "-m", "module"]``.
        arguments: of the module.
    """
    program = Path(sys.executable).parent / launcher[0]
    known = str(program) if program.exists() else launcher[0]
    return [known, *launcher[1:], *arguments]


class StageRunner:
    """Runs stages and records the finished ones.

    Args:
        record: JSON file of the finished stages: name -> command lines, config digest and seconds.
        digest: returns the digest of a stage's config, so that a changed config makes it another stage.
    """

    def __init__(self, record: Path, digest: Callable[[Stage], str]) -> None:
        self.record, self._digest = record, digest
        self.done: dict[str, dict] = json.loads(record.read_text()) if record.is_file() else {}

    def _made_by(self, stage: Stage) -> dict:
        return {"commands": stage.lines, "configs": self._digest(stage)}

    def run(self, stage: Stage) -> None:
        """Run a stage unless it is finished.

        A finished training whose config has changed is not run again; a line names the folder to remove.

        Raises:
            RuntimeError: a command failed, or a training ended without its last folder.
        """
        if stage.final:
            self._train(stage, stage.final)
        elif stage.finished() if stage.finished else self._is_recorded(stage):
            print(f"== {stage.name}: done before", flush=True)
        else:
            self._run(stage)

    def _is_recorded(self, stage: Stage) -> bool:
        return self._made_by(stage).items() <= self.done.get(stage.name, {}).items()

    def _train(self, stage: Stage, final: Path) -> None:
        if final.is_dir():
            print(f"== {stage.name}: done before, {final} exists", flush=True)
            digest = self._digest(stage)
            if self.done.get(stage.name, {}).get("configs", digest) != digest:
                why = "its config, or a stage before it, has changed since"
                print(f"== {stage.name}: {why}; remove {final.parent} to train it again")
            return
        self._outdate_after(stage.name)
        self._run(stage)
        if not final.is_dir():
            raise RuntimeError(f"{stage.name}: ended without {final}")

    def _outdate_after(self, name: str) -> None:
        """Mark the stages that were recorded after this one: they are made of what it writes anew."""
        names = list(self.done)
        if name in names:
            for later in names[names.index(name) + 1 :]:
                self.done[later]["configs"] = "outdated"
            self._write()

    def _run(self, stage: Stage) -> None:
        made_by = self._made_by(stage)
        print(f"== {stage.name}", flush=True)
        start = time.perf_counter()
        _run_in_parallel(stage)
        seconds = time.perf_counter() - start
        print(f"== {stage.name}: {seconds:.0f} s", flush=True)
        self.done[stage.name] = {**made_by, "seconds": round(seconds, 1)}
        self._write()

    def _write(self) -> None:
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self.record) as stream:
            stream.write(json.dumps(self.done, indent=1).encode() + b"\n")


def _run_in_parallel(stage: Stage) -> None:
    environment = dict(os.environ)
    if len(stage.commands) > 1:  # share the cores evenly
        threads = len(os.sched_getaffinity(0)) // len(stage.commands)
        environment["OMP_NUM_THREADS"] = str(max(1, threads))
    running = [
        # A stage must not run beside its own second start.
        subprocess.Popen(
            command, env=environment, preexec_fn=partial(end_with_parent, signal.SIGTERM)
        )
        for command in stage.commands
    ]
    codes = [process.wait() for process in running]
    for line, code in zip(stage.lines, codes, strict=True):
        if code:
            raise RuntimeError(f"{stage.name}: exit code {code} of {line}")
