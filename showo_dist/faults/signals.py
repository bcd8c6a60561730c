"""Requests to stop, by a signal or by the death of the launcher: recorded at once, obeyed by all ranks
together after the current step."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch.distributed as dist

from showo_dist.runtime.exits import StoppedError
from showo_dist.runtime.lock import parent_of
from showo_launch.exit_codes import MACHINE_ERROR, PREEMPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_LAUNCHER_DIED = "death of the launcher"
_PARENT_S = 1.0


class StopRequest:
    """While entered, records SIGTERM, SIGUSR1 and SIGINT instead of ending the process.

    A second SIGINT raises KeyboardInterrupt, as usual. The death of torchrun or of DeepSpeed's launcher is
    recorded too: ranks that outlive it would keep their GPUs and the run's folder, and nobody would see them.

    Attributes:
        reason: the last signal received, the death of the launcher, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._left = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.reason is not None

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread may, because Python delivers signals there."""
        self._before = {number: signal.signal(number, self._record) for number in STOP_SIGNALS}
        threading.Thread(target=self._watch, args=(_launchers(),), daemon=True).start()
        return self

    def _watch(self, launchers: list[tuple[int, int]]) -> None:
        while not self._left.wait(_PARENT_S):
            # A child of a dead process gets another parent; the id of the dead one may be used again.
            if any(parent_of(child) != parent for child, parent in launchers):
                self.reason = _LAUNCHER_DIED
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _launchers() -> list[tuple[int, int]]:
    """Pairs of a process and its parent, a launcher that must live; empty without a launcher.

    Torchrun is the parent of its ranks. DeepSpeed has a process on each host, which sets CROSS_RANK; its own
    parent is ``deepspeed``, or on other hosts what ssh started, which ends with the connection.
    """
    own, parent = os.getpid(), os.getppid()
    if "CROSS_RANK" in os.environ:
        above = parent_of(parent) or 0
        command = Path(f"/proc/{above}/cmdline").read_bytes() if above else b""
        # Any other process, such as the shell of a user who started DeepSpeed's own part, may end.
        also = b"deepspeed" in command or command.startswith(b"sshd")
        return [(own, parent), (parent, above)] if also else [(own, parent)]
    return [(own, parent)] if "TORCHELASTIC_RUN_ID" in os.environ else []


def stopped(request: StopRequest, step: int, saved: int, latest: bool) -> StoppedError:
    """The end of a run that was stopped after ``step``; names the ranks and reasons; collective.

    Args:
        request: of this rank.
        step: the last one.
        saved: step of the last checkpoint.
        latest: whether the command resumes from the newest checkpoint.
    """
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, request.reason)
    asked = ", ".join(f"{why} on rank {rank}" for rank, why in enumerate(reasons) if why)
    # A dead launcher is a fault, after which a supervisor starts the run again.
    code = PREEMPTED if {*reasons} - {None, _LAUNCHER_DIED} else MACHINE_ERROR
    state = "and saved after" if saved == step else f"with a checkpoint of step {saved}, after"
    how = "the same command" if latest else "experiment.resume_from_checkpoint=latest"
    message = f"stopped {state} step {step} ({asked}); {how} resumes from there"
    return StoppedError(code, message)
