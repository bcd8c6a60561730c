"""Reading a checkpoint: whole tensors, or only the ranges that a rank needs."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from showo_dist.checkpoint.folders import (
    resumable_checkpoints,
    set_back,
    sweep,
    verify,
    written_since,
)
from showo_dist.checkpoint.slices import EMA, KINDS, WEIGHT, Piece, Slice, StoredTensor, TensorIndex
from showo_dist.checkpoint.state import BatchShape, RunState
from showo_dist.config.experiment import ExperimentConfig
from showo_dist.runtime.ranks import Ranks

# Prefixes of the files of weights, their averages, and moments.
PREFIXES = {WEIGHT: "model", EMA: "ema"}
OPTIMIZER = "optimizer"
T = TypeVar("T")
# Environment variable: when the job began, in seconds since the epoch, before any restart of it.
STARTED = "SHOWO_STARTED"


def file_prefix(kind: str) -> str:
    """The first word of the names of the files that hold a kind of tensor."""
    return PREFIXES.get(kind, OPTIMIZER)


class CheckpointReader:
    """Reads a checkpoint tensor by tensor; files are mapped, so only the pages in use are read.

    Args:
        folder: ``checkpoint-STEP``.
        check: compare the files with the manifest first.
        only: the one kind of tensor that will be read, whose files alone are checked; None: all.

    Raises:
        ValueError: it is not a complete checkpoint, or a file of it has changed; the file is named.
    """

    def __init__(self, folder: Path, *, check: bool = True, only: str | None = None) -> None:
        self.folder = folder
        if check:
            unread = {file_prefix(kind) for kind in KINDS if only and kind != only}
            problem = verify(folder, lambda name: name.split("-")[0] not in unread)
            if problem is not None:
                raise ValueError(problem)
        self.index = TensorIndex.read(folder)
        self._open: dict[str, Any] = {}

    @property
    def state(self) -> RunState:
        """Step and stream positions.

        Raises:
            ValueError: another version wrote it.
        """
        return RunState.read(self.folder)

    def names(self, kind: str = WEIGHT) -> list[str]:
        """Names of the parameters that have a tensor of this kind."""
        return list(self.index.tensors[kind])

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Shape of a whole tensor.

        Raises:
            ValueError: the checkpoint has no such tensor.
        """
        return self._stored(kind, name).shape

    def read(self, kind: str, name: str) -> Tensor:
        """One whole fp32 tensor on the CPU.

        Args:
            kind: one of :data:`~showo_dist.checkpoint.slices.KINDS`.
            name: of the parameter.

        Raises:
            ValueError: the checkpoint has no such tensor, or it cannot be read.
        """
        stored = self._stored(kind, name)
        parts = [self._flat(part) for part in stored.slices]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(stored.shape)

    def read_range(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of a flattened tensor, and no others.

        Raises:
            ValueError: as :meth:`read`.
        """
        parts = [
            self._flat(part)[max(start - part.start, 0) : stop - part.start]
            for part in self._stored(kind, name).slices
            if part.start < stop and start < part.stop
        ]
        # A single slice stays a view of the mapped file.
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_piece(self, piece: Piece) -> Tensor:
        """The values of a piece of an engine's memory.

        Raises:
            ValueError: as :meth:`read`, or the tensor has another shape.
        """
        shape = self.shape(piece.kind, piece.name)
        if shape != piece.shape:
            raise ValueError(
                f"{self.folder}: {piece.kind} of {piece.name} is {list(shape)}, "
                f"the model has {list(piece.shape)}"
            )
        return self.read_range(piece.kind, piece.name, piece.start, piece.stop)

    def _stored(self, kind: str, name: str) -> StoredTensor:
        stored = self.index.tensors[kind].get(name)
        if stored is None:
            raise ValueError(f"{self.folder}: has no {kind} of {name}")
        return stored

    def _flat(self, part: Slice) -> Tensor:
        """A stored slice, mapped from its file."""
        path = self.folder / part.file
        try:
            if part.file not in self._open:
                self._open[part.file] = safe_open(path, framework="pt")
            return self._open[part.file].get_tensor(part.key).flatten()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None


@dataclass(frozen=True)
class Resume:
    """The checkpoint that a run resumes from, if any.

    Attributes:
        reader: None: the run starts at step 0.
        warnings: lines for the log.
    """

    reader: CheckpointReader | None
    warnings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """The checkpoint's folder."""
        return self.reader.folder if self.reader else None


def find_resume(run: Path, experiment: ExperimentConfig, batch: BatchShape, ranks: Ranks) -> Resume:
    """Choose and verify the checkpoint to resume from; collective.

    Partial folders of a killed run are removed first.

    Args:
        run: the run's folder.
        experiment: ``resume_from_checkpoint``, ``resume_fallback`` and ``allow_batch_change``.
        batch: of this run.
        ranks: of this run; they divide the files to verify among them.

    Raises:
        ValueError: it does not exist, is damaged, or has another global batch.
    """
    ranks.first_alone(lambda: sweep(run))
    warnings: list[str] = []
    choice = experiment.resume_from_checkpoint
    if choice not in (True, "latest") and _has_saved(run, ranks):
        warnings.append(
            f"experiment.resume_from_checkpoint = {choice}: held for the first start of this job, which has "
            "saved since"
        )
        choice = "latest"
    folders = _as_first(_candidates(run, choice), ranks)
    for place, folder in enumerate(folders):
        problem = _problem(folder, ranks)
        # The files were verified by all ranks together, so no rank verifies them again.
        if problem is None:
            ranks.first_alone(partial(set_back, run, folder))
            reader = CheckpointReader(folder, check=False)
            warnings += _batch_warnings(reader, batch, experiment.allow_batch_change)
            return Resume(reader, tuple(warnings))
        # Without permission an older checkpoint is never used: it would repeat training unnoticed.
        if not experiment.resume_fallback or place + 1 == len(folders):
            raise ValueError(problem + _fallback_hint(folders[place + 1 :]))
        warnings.append(f"{problem}; trying {folders[place + 1].name}")
    return Resume(None)


def _has_saved(run: Path, ranks: Ranks) -> bool:
    """Whether the job that this start belongs to has saved a checkpoint before; the same on all ranks."""
    started = float(os.environ.get(STARTED, "inf"))
    return _as_first(written_since(run, started), ranks)


def _candidates(run: Path, choice: bool | str | None) -> list[Path]:
    """Folders to try, in order."""
    if choice in (True, "latest"):
        return resumable_checkpoints(run)
    if not choice:
        return []
    path = Path(str(choice))
    if not path.is_dir():
        raise ValueError(f"experiment.resume_from_checkpoint = {choice}: no such folder")
    return [path]


def _as_first(value: T, ranks: Ranks) -> T:
    """Rank 0's value on every rank: on a shared disk, other hosts may see a new folder later."""
    seen = [value]
    if ranks.world > 1:
        dist.broadcast_object_list(seen, src=0)
    return seen[0]


def _problem(folder: Path, ranks: Ranks) -> str | None:
    """The first problem that any rank finds in its share of the files."""
    # Hashing is divided: each rank reads its share of the bytes once.
    problems = [verify(folder, rank=ranks.rank, world=ranks.world)]
    if ranks.world > 1:
        mine, problems = problems[0], [None] * ranks.world
        dist.all_gather_object(problems, mine)
    return next((problem for problem in problems if problem), None)


def _fallback_hint(older: list[Path]) -> str:
    if not older:
        return ""
    return f"; {older[0].name} is used instead with experiment.resume_fallback=true"


def _batch_warnings(reader: CheckpointReader, batch: BatchShape, allowed: bool) -> list[str]:
    change = reader.state.batch.change_to(batch)
    if change is None:
        return []
    if not allowed:
        raise ValueError(
            f"{reader.folder}: {change}. Keep it through training.gradient_accumulation_steps and "
            "training.batch_size_*, or allow the change: experiment.allow_batch_change=true"
        )
    return [change]
