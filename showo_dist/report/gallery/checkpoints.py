"""Find the runs and checkpoints to show."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from showo_dist.models.weights.folder import CONFIG_NAME, read_json

_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """One column of images.

    Attributes:
        folder: with its files.
        run: name of its run.
        step: optimizer step; None when the folder's name does not hold it.
    """

    folder: Path
    run: str
    step: int | None

    @property
    def label(self) -> str:
        """Its name on the page."""
        return self.run if self.step is None else f"{self.run}, step {self.step:,}"

    def digest(self, settings: object) -> str:
        """Name of the folder of its images; it changes with the checkpoint's files and the settings."""
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        whole = json.dumps([str(self.folder.resolve()), stats, settings])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """A run and its checkpoints that are shown, ordered by step."""

    folder: Path
    name: str
    checkpoints: list[Checkpoint]


def find_runs(folders: list[Path], columns: int) -> list[Run]:
    """Find the runs in the given folders.

    Args:
        folders: each a run, a folder of runs, or a single checkpoint.
        columns: most checkpoints of a run; of more, evenly spaced ones are kept, with the last.

    Raises:
        ValueError: a folder is none of these.
    """
    found = [run for folder in folders for run in _runs_of(folder)]
    names = [run.name for run in found]
    for place, run in enumerate(found):
        if names.count(run.name) > 1 and not _is_checkpoint(run.folder):
            found[place] = _run(run.folder, f"{run.folder.resolve().parent.name}/{run.name}")
    return [Run(run.folder, run.name, thinned(run.checkpoints, columns)) for run in found]


def _runs_of(folder: Path) -> list[Run]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if _is_checkpoint(folder):
        name = folder.resolve().name
        run = folder.resolve().parent.name if name.startswith(_PREFIX) else name
        return [Run(folder, run, [Checkpoint(folder, run, _step(name))])]
    own = _run(folder, folder.resolve().name)
    if own.checkpoints:
        return [own]
    candidates = sorted(path for path in folder.iterdir() if path.is_dir())
    runs = [
        run for run in (_run(path, path.resolve().name) for path in candidates) if run.checkpoints
    ]
    if not runs:
        raise ValueError(
            f"{folder}: neither a run with {_PREFIX}… folders nor a folder of such runs"
        )
    return runs


def _run(folder: Path, name: str) -> Run:
    paths = [folder] if _is_checkpoint(folder) else sorted(folder.glob(f"{_PREFIX}*"))
    checkpoints = [
        Checkpoint(path, name, _step(path.resolve().name)) for path in paths if _is_checkpoint(path)
    ]
    return Run(folder, name, checkpoints)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a config with the model's sizes is there; the config of a tokenizer does not have them."""
    path = folder / CONFIG_NAME
    return path.is_file() and "llm_vocab_size" in read_json(path)


def _step(name: str) -> int | None:
    number = name.removeprefix(_PREFIX)
    return int(number) if number.isdigit() else None


def thinned(checkpoints: list[Checkpoint], columns: int) -> list[Checkpoint]:
    """At most ``columns`` of them, evenly spaced, the last one among them."""
    count = len(checkpoints)
    if count <= columns:
        return checkpoints
    return [checkpoints[-1 - place * count // columns] for place in reversed(range(columns))]
