"""Signals that ask a rank to stop: noted at once, acted on by all ranks after the step under way."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """While entered, notes SIGTERM, SIGUSR1 and SIGINT instead of dying of them.

    A second SIGINT interrupts at once, as it does without this.

    Attributes:
        signal_name: the last signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> Self:
        """Only the main thread may enter: Python delivers signals there."""
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def who_asked(own: StopRequest, step: int) -> str:
    """One line on who asked all ranks to stop after ``step``; collective."""
    names: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, own.signal_name)
    asked = ", ".join(f"{name} on rank {rank}" for rank, name in enumerate(names) if name)
    return f"stopped and saved after step {step} ({asked}); the same command goes on from there"
