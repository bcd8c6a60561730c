"""Requests to stop, by a signal or by the death of the launcher: recorded at once, obeyed by all ranks
together after the current step."""

import os
import select
import signal
import threading
from functools import partial
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
_LEFT = b"\0"  # no number of a signal
# A signal to a forked data worker is not one to its rank.
os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))


class StopRequest:
    """While entered, records SIGTERM, SIGUSR1 and SIGINT instead of ending the process.

    A second SIGINT raises KeyboardInterrupt, as usual. The death of torchrun or of DeepSpeed's launcher is
    recorded too: ranks that outlive it would keep their GPUs and the run's folder, and nobody would see them.

    Attributes:
        reason: the last signal received, the death of the launcher, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.reason is not None

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread may, because Python delivers signals there."""
        self._before = {number: signal.signal(number, self._record) for number in STOP_SIGNALS}
        self._numbers, self._woken_by = os.pipe()
        os.set_blocking(self._woken_by, False)
        self._wakeup_before = signal.set_wakeup_fd(self._woken_by, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(_launchers(),), daemon=True)
        self._thread.start()
        return self

    def _watch(self, launchers: list[tuple[int, int]]) -> None:
        """Record what the main thread cannot: signals while it hangs in a library, the launcher's death."""
        while True:
            ready, _, _ = select.select([self._numbers], [], [], _PARENT_S)
            received = os.read(self._numbers, 64) if ready else b""
            if _LEFT in received:
                return
            for number in STOP_SIGNALS:
                if number in received:
                    self.reason = number.name
            # A child of a dead process gets another parent; the id of the dead one may be used again.
            if any(parent_of(child) != parent for child, parent in launchers):
                self.reason = self.reason or _LAUNCHER_DIED

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._woken_by, _LEFT)
        self._thread.join()
        os.close(self._numbers)
        os.close(self._woken_by)

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
