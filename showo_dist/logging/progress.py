"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Metrics shown in the progress line, in this order, if the trainer measures them.
_SHOWN = {
    "loss": "loss {:.3f}",
    "loss/t2i": "t2i {:.3f}",
    "loss/lm": "lm {:.3f}",
    "loss/mmu": "mmu {:.3f}",
    "loss/recon": "recon {:.3f}",
    "loss/edit": "edit {:.3f}",
    "validation/loss": "validation {:.3f}",
    "codes_in_use": "codes in use {:.0f}",
    "eval/psnr": "PSNR {:.1f} dB",
    "lr": "lr {:.1e}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "images_per_s": "{:,.0f} images/s",
    "mfu": "mfu {:.1%}",
}


def summary(metrics: Mapping[str, float]) -> str:
    """The metrics of ``_SHOWN`` in one line."""
    shown = (text.format(metrics[name]) for name, text in _SHOWN.items() if name in metrics)
    return "  ".join(shown)


class PlainProgress:
    """Prints one line per ``every_s`` seconds and one at the end, for output that is not a terminal.

    Args:
        name: of the run.
        total_steps: of the whole run.
        start_step: steps done before.
        every_s: least seconds between two lines.
        unit: name of a step.
    """

    def __init__(
        self, name: str, total_steps: int, start_step: int, every_s: float, unit: str
    ) -> None:
        self._name, self._total, self._start = name, total_steps, start_step
        self._unit = unit
        self._every_s = every_s
        self._began = time.monotonic()
        self._printed_at: float | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        waited = self._printed_at is None or now - self._printed_at >= self._every_s
        if waited or step >= self._total:
            self._printed_at = now
            parts = [f"{self._name}: {self._unit} {step}/{self._total}", summary(metrics)]
            print("  ".join(filter(None, [*parts, self._remaining(step, now)])), flush=True)

    def _remaining(self, step: int, now: float) -> str:
        done = step - self._start
        if done <= 0:
            return "ETA unknown"
        seconds = (now - self._began) / done * max(0, self._total - step)
        return f"ETA {timedelta(seconds=round(seconds))}"

    def event(self, message: str) -> None:
        print(f"{self._name}: {message}", flush=True)

    def image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
        """Images are not shown; they are in files."""

    def close(self) -> None:
        """Nothing to close."""


class BarProgress:
    """Shows a bar in the last line of the terminal."""

    def __init__(self, name: str, total_steps: int, start_step: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=2,
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task(
            name, total=total_steps, completed=start_step, summary=""
        )
        self._progress.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._progress.update(self._task, completed=step, summary=summary(metrics))

    def event(self, message: str) -> None:
        self._progress.console.print(message, markup=False, highlight=False)

    def image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
        """Images are not shown; they are in files."""

    def close(self) -> None:
        self._progress.stop()


def progress_display(
    name: str,
    total_steps: int,
    start_step: int = 0,
    every_s: float = 10.0,
    unit: str = "step",
) -> PlainProgress | BarProgress:
    """A bar if stdout is a terminal that can move its cursor, else plain lines."""
    console = Console()
    if sys.stdout.isatty() and console.is_interactive:
        return BarProgress(name, total_steps, start_step, console)
    return PlainProgress(name, total_steps, start_step, every_s, unit)
