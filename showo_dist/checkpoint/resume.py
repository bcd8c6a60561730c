"""Which checkpoint a run goes on from, and whether it may."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from showo_dist.checkpoint.folders import complete_checkpoints, sweep, verify
from showo_dist.checkpoint.reader import CheckpointReader
from showo_dist.checkpoint.state import BatchShape
from showo_dist.config.experiment import ExperimentConfig
from showo_dist.runtime.ranks import Ranks


@dataclass(frozen=True)
class Resume:
    """What a run starts from.

    Attributes:
        reader: of the checkpoint; None: the run starts at step 0.
        warnings: lines for the log.
    """

    reader: CheckpointReader | None
    warnings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """Of the checkpoint."""
        return self.reader.folder if self.reader else None


def find_resume(run: Path, experiment: ExperimentConfig, batch: BatchShape, ranks: Ranks) -> Resume:
    """Choose and check the checkpoint to go on from; collective.

    What a killed run left behind is cleared away first.

    Args:
        run: the run's folder.
        experiment: ``resume_from_checkpoint``, ``resume_fallback`` and ``allow_batch_change``.
        batch: of this run.
        ranks: of this run, which share the work of checking the files.

    Raises:
        ValueError: it does not exist, is damaged, or has another global batch.
    """
    ranks.first_alone(lambda: sweep(run))
    warnings: list[str] = []
    folders = _as_first(_candidates(run, experiment.resume_from_checkpoint), ranks)
    for place, folder in enumerate(folders):
        problem = _problem(folder, ranks)
        if problem is None:
            reader = CheckpointReader(folder, check=False)
            warnings += _batch_warnings(reader, batch, experiment.allow_batch_change)
            return Resume(reader, tuple(warnings))
        if not experiment.resume_fallback or place + 1 == len(folders):
            raise ValueError(problem + _fallback_hint(folders[place + 1 :]))
        warnings.append(f"{problem}; trying {folders[place + 1].name}")
    return Resume(None)


def _candidates(run: Path, choice: bool | str | None) -> list[Path]:
    """Folders to try, in this order."""
    if not choice:
        return []
    if choice in (True, "latest"):
        return complete_checkpoints(run)[::-1]
    path = Path(str(choice))
    if not path.is_dir():
        raise ValueError(f"experiment.resume_from_checkpoint = {choice}: no such folder")
    return [path]


def _as_first(folders: list[Path], ranks: Ranks) -> list[Path]:
    """What the first rank sees: on a shared disk others may see a new folder later."""
    seen: list[list[Path] | None] = [folders]
    if ranks.world > 1:
        dist.broadcast_object_list(seen, src=0)
    assert seen[0] is not None
    return seen[0]


def _problem(folder: Path, ranks: Ranks) -> str | None:
    """The first problem that any rank finds; each checks its share of the files."""
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
