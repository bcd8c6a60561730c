"""The place of a rank's main thread in its run, written by that thread and read by those that watch it."""

import threading
import time
from dataclasses import dataclass

# Phases that may take long without a fault. So may every phase of a process's first step, which compiles.
LONG_PHASES = ("setup", "save", "validation", "images", "end")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is in its run.

    Attributes:
        step: current optimizer step, or the last one.
        phase: ``setup``, ``data``, ``exchange`` (of label counts), ``forward``, ``backward``, ``step``,
            ``log``, ``validation``, ``images``, ``save`` or ``end``.
        moves: phases entered so far; all ranks enter the same phases in the same order.
        may_take_long: whether the phase is long (see :data:`LONG_PHASES`).
    """

    step: int = 0
    phase: str = "setup"
    moves: int = 0
    may_take_long: bool = True

    def __str__(self) -> str:
        return "setup" if self.phase == "setup" else f"{self.phase} of step {self.step}"


class Progress:
    """The current place; it is replaced as a whole, so that other threads can read it without a lock.

    Attributes:
        place: where the main thread is.
        moved_at: when it entered it, in seconds of the monotonic clock.
        moved: set at each change of the place.
    """

    def __init__(self) -> None:
        self.place, self.moved = Place(), threading.Event()
        self.moved_at = time.monotonic()
        self._first_step: int | None = None

    def begin_step(self, step: int) -> None:
        """Begin optimizer step ``step``, with its phase ``data``."""
        if self._first_step is None:
            self._first_step = step
        self._move(step, "data")

    def enter(self, phase: str) -> None:
        """Enter the next phase of the current step."""
        self._move(self.place.step, phase)

    def _move(self, step: int, phase: str) -> None:
        long = phase in LONG_PHASES or step == self._first_step
        self.place = Place(step, phase, self.place.moves + 1, long)
        self.moved_at = time.monotonic()
        self.moved.set()
