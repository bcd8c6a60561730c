"""Restart a training that died, from its last checkpoint; see ``docs/faults.md``.

    launchers/supervise --restarts 5 -- deepspeed --num_gpus 2 --module showo_dist.train config=FILE …
    launchers/supervise --restarts 5 --ranks 4 --on-ranks-left -- \
        torchrun --nproc-per-node {ranks} -m showo_dist.train config=FILE \
        training.gradient_accumulation_steps={accumulation} …
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from showo_launch.exit_codes import (
    DONE,
    MACHINE_ERROR,
    NON_FINITE,
    PREEMPTED,
    RANK_LOST,
    REPORTS,
    USER_ERROR,
)

PROGRAM = "supervise"
# No restart after these: the run is done, was stopped on request, or would fail in the same way again.
_FINAL = (DONE, USER_ERROR, NON_FINITE, PREEMPTED)
_DEVICES = "CUDA_VISIBLE_DEVICES"
# Tells the ranks of a restart that what the run has saved since then is theirs.
_STARTED = "SHOWO_STARTED"
_SAVE_S = 120.0  # for the ranks of a launcher that was killed


@dataclass(frozen=True)
class Shape:
    """How the global batch is split into ``ranks × accumulation`` micro-steps; their product is constant.

    Attributes:
        ranks: processes to start.
        accumulation: micro-steps of each rank per optimizer step.
        devices: GPU of each rank, as CUDA_VISIBLE_DEVICES names them.
        chosen: whether CUDA_VISIBLE_DEVICES has to be set, because a launcher would use other GPUs.
    """

    ranks: int
    accumulation: int
    devices: tuple[str, ...]
    chosen: bool = False

    def without(self, lost: set[int]) -> "Shape":
        """The same batch on the largest number of remaining ranks that divides the micro-steps evenly.

        Raises:
            ValueError: no rank remains.
        """
        left = [rank for rank in range(self.ranks) if rank not in lost]
        micro_steps = self.ranks * self.accumulation
        fitting = [count for count in range(1, len(left) + 1) if micro_steps % count == 0]
        if not fitting:
            raise ValueError(f"all {self.ranks} ranks are lost")
        kept = left[: fitting[-1]]
        devices = tuple(self.devices[rank] for rank in kept)
        return Shape(len(kept), micro_steps // len(kept), devices, chosen=True)

    def filled(self, command: list[str]) -> list[str]:
        """The command with ``{ranks}``, ``{accumulation}`` and ``{devices}`` replaced."""
        values = {"ranks": self.ranks, "accumulation": self.accumulation}
        for name, value in {**values, "devices": ",".join(self.devices)}.items():
            command = [word.replace(f"{{{name}}}", str(value)) for word in command]
        return command


@dataclass(frozen=True)
class Ending:
    """How one start of the command ended.

    Attributes:
        code: exit code that the ranks reported, else the launcher's.
        lost: ranks that others found dead or hung; one that reports its own failure is neither.
    """

    code: int
    lost: frozenset[int]


class Supervisor:
    """Starts a command and passes signals on to its ranks.

    Args:
        command: with placeholders.
        folder: where the ranks report; emptied before each start.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command, self.folder = command, folder
        self._started = str(time.time())
        self._launcher: subprocess.Popen | None = None
        self.stop_requested = False

    def run(self, shape: Shape) -> Ending:
        """Start the command once and wait until it and its ranks have ended."""
        for path in self.folder.iterdir():
            path.unlink()
        environment = {_STARTED: self._started, **os.environ, REPORTS: str(self.folder)}
        if shape.chosen:
            environment[_DEVICES] = ",".join(shape.devices)
        # In a process group of its own, so that Ctrl-C reaches it only through pass_on.
        try:
            self._launcher = subprocess.Popen(
                shape.filled(self.command), env=environment, process_group=0
            )
        except (FileNotFoundError, PermissionError) as error:
            raise ValueError(f"{self.command[0]}: {error.strerror}") from None
        if self.stop_requested:  # before there was a launcher to pass the signal on to
            self._launcher.terminate()
        code = self._launcher.wait()
        self._await_ranks()
        return self._ending(code)

    def _await_ranks(self) -> None:
        """Wait for ranks that outlive a killed launcher: they save, and still hold GPUs and the folder."""
        until = time.monotonic() + _SAVE_S
        while (ranks := self._ranks()) and time.monotonic() < until:
            time.sleep(0.2)
        for pid in ranks:
            _log(f"the rank with pid {pid} outlived its launcher by {_SAVE_S:g} s and is killed")
            _send(pid, signal.SIGKILL)

    def _ranks(self) -> list[int]:
        """Process ids of the ranks that run here; one that was given to another process is left out."""
        mark = f"{REPORTS}={self.folder}".encode()
        running = []
        for report in self._reports().values():
            with suppress(OSError):  # it has just ended
                environment = Path(f"/proc/{report['pid']}/environ").read_bytes()
                if report["code"] is None and mark in environment.split(b"\0"):
                    running.append(report["pid"])
        return running

    def _reports(self) -> dict[int, dict[str, Any]]:
        return {
            int(path.stem.removeprefix("rank-")): json.loads(path.read_text())
            for path in self.folder.glob("rank-*.json")
        }

    def _ending(self, launcher_code: int) -> Ending:
        """Prefer the exit codes that ranks reported.

        Torchrun turns every code into 1, and ``deepspeed`` the death of its other process into 0.
        """
        reports = self._reports()
        codes = {report["code"] for report in reports.values()}
        failed = {r for r, report in reports.items() if report["code"] not in (None, RANK_LOST)}
        lost = frozenset(r for report in reports.values() for r in report["lost"]) - failed
        if not launcher_code and codes <= {DONE}:
            return Ending(DONE, lost)
        known = next((code for code in (USER_ERROR, NON_FINITE, PREEMPTED) if code in codes), None)
        return Ending(known or launcher_code or MACHINE_ERROR, lost)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: send SIGTERM to the ranks, or to the launcher where no rank runs yet.

        A launcher would kill the ranks after 30 seconds, too soon for a step and a save. The second signal
        goes to the launcher.
        """
        launcher = [self._launcher.pid] if self._launcher and self._launcher.poll() is None else []
        ranks = [] if self.stop_requested and launcher else self._ranks()
        for pid in ranks or launcher:
            _send(pid, signal.SIGTERM)
        self.stop_requested = True


def main(argv: list[str]) -> int:
    """``supervise [--restarts N] [--delay S] [--ranks N --accumulation A --on-ranks-left] -- COMMAND …``."""
    own, command = _split(argv)
    options = _parser().parse_args(own)
    if not command:
        raise ValueError("give the command to supervise after --")
    for name, least in (("restarts", 0), ("delay", 0), ("ranks", 1), ("accumulation", 1)):
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name} {value:g}: expected {least} or more")
    if options.on_ranks_left:
        _check_placeholders(command)
    shape = Shape(options.ranks, options.accumulation, _devices(options.ranks))
    with tempfile.TemporaryDirectory(prefix="supervise-") as folder:
        supervisor = Supervisor(command, Path(folder))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, supervisor.pass_on)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGHUP, supervisor.pass_on)
        return _restart(supervisor, shape, options)


def _check_placeholders(command: list[str]) -> None:
    """Check that a restart runs on the ranks that are left, and on their GPUs.

    Raises:
        ValueError: it would not.
    """
    if not any(p in word for word in command for p in ("{ranks}", "{devices}")):
        raise ValueError(
            "--on-ranks-left: the command must contain {ranks}, as --nproc-per-node {ranks}, or {devices}, "
            "as deepspeed --include localhost:{devices}"
        )
    # DeepSpeed then replaces CUDA_VISIBLE_DEVICES by the first GPUs, the lost rank's among them.
    by_number = re.search(r"--num_(gpus|accelerators)[ =]\{ranks\}", " ".join(command))
    if by_number and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise ValueError(
            f"{by_number[0]}: DeepSpeed would use a lost GPU again: write "
            "--include localhost:{devices}, or set DS_ACCELERATOR=cpu where there is no GPU"
        )


def _restart(supervisor: Supervisor, shape: Shape, options: argparse.Namespace) -> int:
    """Start until the run ends for good or no restart is left; returns the last exit code."""
    for left in range(options.restarts, -1, -1):
        ending = supervisor.run(shape)
        if ending.code in _FINAL or supervisor.stop_requested:
            return ending.code
        if not left:
            _log(f"exit code {ending.code}, and no restart is left")
            return ending.code
        if options.on_ranks_left and ending.lost:
            shape = shape.without(set(ending.lost))
        _log(
            f"exit code {ending.code}; restarting on {shape.ranks} ranks, accumulation "
            f"{shape.accumulation}; {left - 1} restarts are left"
        )
        time.sleep(options.delay)
        if supervisor.stop_requested:
            return ending.code
    raise AssertionError("the last round returns")


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _log(line: str) -> None:
    with suppress(OSError):  # a full disk behind stderr must not end the supervisor
        print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _devices(ranks: int) -> tuple[str, ...]:
    """The GPUs that the environment names, else the first ones."""
    named = tuple(filter(None, os.environ.get(_DEVICES, "").split(",")))
    return named[:ranks] if len(named) >= ranks else tuple(map(str, range(ranks)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--restarts", type=int, default=5, help="at most (default %(default)s)")
    parser.add_argument(
        "--delay", type=float, default=5.0, help="seconds before a restart (default %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="first value of {ranks}")
    parser.add_argument("--accumulation", type=int, default=1, help="first value of {accumulation}")
    parser.add_argument(
        "--on-ranks-left", action="store_true", help="restart without the ranks that were lost"
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        _log(str(error))
        sys.exit(USER_ERROR)
    except OSError as error:
        _log(str(error))
        sys.exit(MACHINE_ERROR)
