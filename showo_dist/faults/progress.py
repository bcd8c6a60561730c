"""What the main thread of a rank is doing, for the threads that watch over it."""

import threading
from dataclasses import dataclass

# Phases that may take long without anything being wrong. Of the others, so may those of a process's first
# step, which compiles.
LONG_PHASES = ("setup", "save", "images", "end")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is in its run.

    Attributes:
        step: optimizer step under way, or done last.
        phase: ``setup``, ``data``, ``exchange`` (of label counts), ``forward``, ``backward``, ``step``,
            ``log``, ``images``, ``save`` or ``end``.
        moves: phases entered so far; all ranks enter the same ones in the same order.
        may_take_long: whether staying here is no sign of trouble for a long while.
    """

    step: int = 0
    phase: str = "setup"
    moves: int = 0
    may_take_long: bool = True

    def __str__(self) -> str:
        return "setup" if self.phase == "setup" else f"{self.phase} of step {self.step}"


class Progress:
    """Written by the main thread, read by others: a place is replaced as a whole.

    Attributes:
        place: where the main thread is.
        moved: set whenever that changes.
    """

    def __init__(self) -> None:
        self.place, self.moved = Place(), threading.Event()
        self._first_step: int | None = None

    def begin_step(self, step: int) -> None:
        """Optimizer step ``step`` begins, with its data."""
        if self._first_step is None:
            self._first_step = step
        self._move(step, "data")

    def enter(self, phase: str) -> None:
        """The next phase of the step under way."""
        self._move(self.place.step, phase)

    def _move(self, step: int, phase: str) -> None:
        long = phase in LONG_PHASES or step == self._first_step
        self.place = Place(step, phase, self.place.moves + 1, long)
        self.moved.set()
