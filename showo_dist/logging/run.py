"""The logger of a run, which passes metrics, events and images to files, the screen and wandb."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from PIL import Image

from showo_dist.logging.progress import progress_display
from showo_dist.logging.records import RecordFiles
from showo_dist.logging.wandb_run import WandbRun, effective_mode
from showo_dist.runtime.exits import described


class Sink(Protocol):
    """A destination of the log."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def event(self, message: str) -> None: ...
    def image(self, step: int, name: str, image: Image.Image, caption: str) -> None: ...
    def close(self) -> None: ...


class RunLogger:
    """Logs metrics, events and images of a run; does nothing on ranks other than 0.

    A destination that cannot be written, such as a file on a full disk, is one warning on stderr; the run
    continues, and every later line is tried again.

    Args:
        folder: of the run.
        rank: of this process.
        total_steps: optimizer steps of the whole run.
        start_step: steps done before; metrics of later ones are removed from the file.
        config: the resolved config, for wandb.
        project, name: for wandb; the name also begins the progress lines.
        wandb_mode: ``online``, ``offline``, ``disabled``, or ``auto``: online when logged in,
            else offline.
        wandb_id: wandb run to resume.
        wandb_entity: team or user.
        wandb_resume: ``wandb.init(resume=…)``, used with ``wandb_id``.
        metrics_name: file of the metrics in ``folder``; None writes none.
        plain_every_s: least seconds between two progress lines without a terminal.

    Raises:
        ValueError: unknown ``wandb_mode``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        total_steps: int,
        start_step: int,
        config: dict[str, Any],
        project: str,
        name: str,
        wandb_mode: str = "auto",
        wandb_id: str | None = None,
        wandb_entity: str | None = None,
        wandb_resume: bool | str | None = "allow",
        metrics_name: str | None = "metrics.jsonl",
        plain_every_s: float = 10.0,
    ) -> None:
        effective_mode(wandb_mode)  # raises on every rank, so that all of them stop
        self._sinks: list[Sink] = []
        self._failed: list[Sink] = []
        self._wandb: WandbRun | None = None
        if rank != 0:
            return
        self._sinks.append(RecordFiles(folder, metrics_name, start_step))
        self._sinks.append(progress_display(name, total_steps, start_step, plain_every_s))
        self._wandb = WandbRun(
            folder,
            wandb_mode,
            self.event,
            project=project,
            name=name,
            config=config,
            entity=wandb_entity,
            id=wandb_id,
            resume=wandb_resume if wandb_id else None,
        )
        self._sinks.append(self._wandb)

    @property
    def wandb_id(self) -> str | None:
        """The wandb run's id, which checkpoints keep; None without a wandb run."""
        return None if self._wandb is None else self._wandb.id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of optimizer step ``step``: numbers, or tensors of one element."""
        if not self._sinks:
            return
        values = {name: float(value) for name, value in metrics.items()}
        self._each(lambda sink: sink.log(step, values))

    def event(self, message: str) -> None:
        """Log one line about something that happened."""
        self._each(lambda sink: sink.event(message))

    def images(self, step: int, name: str, image: Image.Image, caption: str) -> None:
        """Save an image as ``images/NAME-STEP.png`` and send it to wandb."""
        self._each(lambda sink: sink.image(step, name, image, caption))

    def close(self) -> None:
        """Close the files, the progress display and the wandb run."""
        self._sinks.reverse()  # wandb may fail to close, which goes to the files
        self._each(lambda sink: sink.close())
        self._sinks = []

    def _each(self, action: Callable[[Sink], None]) -> None:
        """Call ``action`` on every destination; one that fails does not stop the run."""
        for sink in self._sinks:
            try:
                action(sink)
            except OSError as error:
                if sink not in self._failed:
                    self._failed.append(sink)
                    line = f"{described(error)}; lines of the log are lost, the run continues"
                    print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
