"""Signals that request a stop: recorded at once, obeyed by all ranks together after the current step."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """While entered, records SIGTERM, SIGUSR1 and SIGINT instead of ending the process.

    A second SIGINT raises KeyboardInterrupt, as usual.

    Attributes:
        signal_name: the last signal received, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread may, because Python delivers signals there."""
        self._before = {number: signal.signal(number, self._record) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def stop_message(own: StopRequest, step: int) -> str:
    """One line that names the ranks and signals that stopped the run after ``step``; collective."""
    names: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, own.signal_name)
    asked = ", ".join(f"{name} on rank {rank}" for rank, name in enumerate(names) if name)
    return f"stopped and saved after step {step} ({asked}); the same command resumes from there"
