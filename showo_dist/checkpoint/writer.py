"""Writing checkpoints in the background of training."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from showo_dist.checkpoint.folders import (
    MANIFEST,
    TENSORS,
    FileEntry,
    folder_of,
    hidden,
    manifest_text,
    prune,
    publish,
    resumable_checkpoints,
    step_of,
    sync,
    written_since,
)
from showo_dist.checkpoint.parts import Part, write_part
from showo_dist.checkpoint.reader import STARTED
from showo_dist.checkpoint.slices import Piece, TensorIndex
from showo_dist.checkpoint.snapshot import Snapshot
from showo_dist.checkpoint.state import STATE, RunState
from showo_dist.config.experiment import ExperimentConfig

Result = TypeVar("Result")


class SaveError(OSError):
    """A checkpoint could not be written; the message is one line with rank, host and reason."""


class Peers:
    """Process groups for saving, separate from the training's group, so that their messages never mix.

    Args:
        timeout_s: how long the slowest rank may take for its part of a checkpoint.
    """

    def __init__(self, timeout_s: float) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        limit = timedelta(seconds=timeout_s)
        alone = self.world == 1
        # Two groups, because the two threads use them at the same time and gloo pairs messages by order.
        self._writing = None if alone else dist.new_group(backend="gloo", timeout=limit)
        self._training = None if alone else dist.new_group(backend="gloo", timeout=limit)

    def together(self, action: Callable[[], Result]) -> list[Result]:
        """Run ``action`` on every rank, in the writing thread, and return the results of all ranks.

        Raises:
            SaveError: on all ranks, when the action failed on any of them.
        """
        mine: tuple[Result | None, str | None]
        try:
            mine = action(), None
        except Exception as error:  # of any kind: the other ranks must not wait for this one
            mine = None, f"rank {self.rank} on {socket.gethostname()}: {one_line(error)}"
        outcomes = [mine]
        if self._writing is not None:
            # Every rank sends its result or its error, so all ranks see the same outcome and none waits for a
            # rank that has failed.
            outcomes = [mine] * self.world
            dist.all_gather_object(outcomes, mine, group=self._writing)
        problem = next((problem for _, problem in outcomes if problem), None)
        if problem is not None:
            raise SaveError(problem)
        return [result for result, _ in outcomes]  # type: ignore[misc]

    def all_agree(self, flag: bool) -> bool:
        """Whether ``flag`` is true on every rank; called in the training thread."""
        if self._training is None:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MIN, group=self._training)
        return bool(flags)


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def resumed_from(run: Path, policy: ExperimentConfig) -> Path | None:
    """The checkpoint that a start resumes from, as ``find_resume`` left it; None: it starts from scratch.

    Args:
        run: the run's folder, which may hold checkpoints of an earlier run.
        policy: ``resume_from_checkpoint``.
    """
    choice = policy.resume_from_checkpoint
    restarted = written_since(run, float(os.environ.get(STARTED, "inf")))
    if choice in (True, "latest") or restarted:
        return next(iter(resumable_checkpoints(run)), None)
    return Path(str(choice)) if choice else None


def open_aside(aside: Path, texts: Mapping[str, str]) -> None:
    """Make the hidden folder with the text files that are known before the tensors are written.

    Raises:
        OSError: it cannot be written.
    """
    aside.mkdir(parents=True)
    for name, text in texts.items():
        _write_text(aside / name, text)


def see(aside: Path) -> None:
    """Fail if rank 0's folder is not visible on this host.

    Raises:
        OSError: it is not.
    """
    if not aside.is_dir():
        raise OSError(
            f"{aside}: not visible here, experiment.output_dir must be a folder that all hosts share"
        )


def complete(aside: Path, target: Path, parts: Sequence[Part]) -> None:
    """Write index and manifest, flush everything to the disk, and rename the folder to its final name.

    Raises:
        OSError: a file cannot be written, or differs in size from what its rank wrote.
    """
    index = TensorIndex.of(placed for part in parts for placed in part.placed)
    _write_text(aside / TENSORS, index.to_json())
    files = {name: entry for part in parts for name, entry in part.files.items()}
    for name, entry in files.items():
        # On a network disk rank 0 may see less than another host wrote; publishing would hide the loss.
        size = (aside / name).stat().st_size
        if size != entry.bytes:
            raise OSError(f"{aside / name}: {size} bytes seen by rank 0, {entry.bytes} written")
    # Text files are hashed here; tensors were hashed by their ranks while being read back.
    small = (path for path in aside.iterdir() if path.name not in files)
    files |= {path.name: FileEntry.of(path) for path in small}
    _write_text(aside / MANIFEST, manifest_text(files))
    sync(aside)
    publish(aside, target)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    sync(path)


class TrainingState(Protocol):
    """The weights and moments of a run, as an engine gives access to them."""

    def owned(self, rank: int, world: int) -> list[Piece]:
        """This rank's part: together the ranks have every element once."""

    def before_update(self, action: Callable[[], None]) -> None:
        """Call ``action`` before every optimizer step that changes weights and moments."""


@dataclass
class _Save:
    """One running save."""

    target: Path
    texts: Mapping[str, str]
    problem: str | None = None
    bytes: int = 0
    seconds: float = 0.0


class CheckpointWriter:
    """Writes the checkpoints of one run. Every rank calls all methods alike, in its training thread.

    :meth:`save` returns at once. A thread on every rank copies the rank's part of the state to host memory,
    writes it to a hidden folder, flushes it to the disk, reads it back and waits for the other ranks; then
    rank 0 makes the checkpoint visible with one rename. Training continues meanwhile; only the optimizer's
    step waits for the copy. A kill at any moment leaves the earlier complete checkpoints intact.

    Args:
        run: the run's folder, the same one for all ranks.
        policy: ``save_asynchronously``, ``on_save_error``, ``keep_last`` and ``keep_every``.
        texts: further text files of each checkpoint, by name.
        timeout_s: limit for the slowest rank's part.

    Attributes:
        took_s: duration of the last finished save, in the background or not.
    """

    def __init__(
        self, run: Path, policy: ExperimentConfig, texts: Mapping[str, str], timeout_s: float
    ) -> None:
        self.run, self.policy, self.texts = run, policy, texts
        self._peers = Peers(timeout_s)
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._current: _Save | None = None
        self._lines: list[str] = []
        self._failure: SaveError | None = None
        self._watched: TrainingState | None = None
        self._in_save_s = self.took_s = 0.0
        self._last_complete = resumed_from(run, policy)

    @property
    def last_complete(self) -> Path | None:
        """The last checkpoint that was saved, or else the one that the run resumed from; None without any."""
        return self._last_complete

    @property
    def blocked_s(self) -> float:
        """Total seconds that saves have blocked the training thread, without waits of GPU streams."""
        return self._in_save_s + self._snapshot.waited_s

    @property
    def is_busy(self) -> bool:
        """Whether a save is running, or finished without :meth:`poll` having reported it."""
        return self._thread is not None

    def reserve(self, engine: TrainingState) -> None:
        """Prepare the host memory that the saves of an engine on a GPU need."""
        self._snapshot.reserve(engine.owned(self._peers.rank, self._peers.world))

    def save(self, engine: TrainingState, state: RunState) -> Path:
        """Begin to write a checkpoint, after waiting for the previous one.

        Args:
            engine: between two optimizer steps.
            state: step and positions that belong to its weights.

        Returns:
            The folder that will appear; :meth:`poll` and :meth:`finish` report when, or what failed.

        Raises:
            SaveError: the previous save failed, and ``on_save_error`` is ``stop``.
        """
        start = time.perf_counter()
        self._settle()
        # One save at a time: the snapshot buffer is reused.
        target = folder_of(self.run, state.step)
        self._watch(engine)
        self._snapshot.begin(engine.owned(self._peers.rank, self._peers.world))
        self._current = _Save(target, {**self.texts, STATE: state.to_json()})
        self._thread = threading.Thread(
            target=self._write, args=(self._current,), name="checkpoint-writer", daemon=True
        )
        self._thread.start()
        if not self.policy.save_asynchronously:
            self._settle()
        self._in_save_s += time.perf_counter() - start
        return target

    def poll(self) -> list[str]:
        """Log lines about saves that ended since the last call; cheap, called once per optimizer step.

        Raises:
            SaveError: a save failed, and ``on_save_error`` is ``stop``; on all ranks at the same call.
        """
        # All ranks must decide alike, or one would enter the collectives of the next save alone.
        thread = self._thread
        if thread is not None and self._peers.all_agree(not thread.is_alive()):
            self._settle()
        lines, self._lines = self._lines, []
        return lines

    def finish(self) -> list[str]:
        """Wait for the running save, at the end of the run and before an exit.

        Returns:
            Log lines, as :meth:`poll`.

        Raises:
            SaveError: the newest state could not be saved.
        """
        self._settle()
        if self._failure is not None:
            raise self._failure
        return self.poll()

    def _watch(self, engine: TrainingState) -> None:
        """Make the optimizer's step wait for the copy."""
        # Once per engine: hooks cannot be removed by name and would add up.
        if self._watched is not engine:
            engine.before_update(self._snapshot.before_update)
            self._watched = engine

    def _settle(self) -> None:
        """Wait for the running save, if any, and record its outcome."""
        if self._thread is None or self._current is None:
            return
        self._thread.join()
        done, self._thread, self._current = self._current, None, None
        self.took_s = done.seconds
        if done.problem is None:
            self._failure, self._last_complete = None, done.target
            size = f"{done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s"
            self._lines.append(f"saved {done.target} ({size})")
            return
        self._failure = SaveError(self._save_error(done))
        if self.policy.on_save_error == "stop":
            raise self._failure
        self._lines.append(str(self._failure))

    def _save_error(self, failed: _Save) -> str:
        last = self.last_complete
        instead = f"the last complete checkpoint is {last}" if last else "there is no checkpoint"
        return f"could not save {failed.target.name}: {failed.problem}; {instead}"

    def _write(self, save: _Save) -> None:
        """Body of the writing thread."""
        start = time.perf_counter()
        try:
            self._write_together(save)
        except Exception as error:  # of any kind: the training thread reports it
            save.problem = one_line(error)
        save.seconds = time.perf_counter() - start

    def _write_together(self, save: _Save) -> None:
        """Copy, write, publish: all ranks finish a phase before the next begins, or all of them fail."""
        peers, pieces = self._peers, list[Piece]()
        mine = hidden(save.target, "partial")
        try:
            # Five phases; after each, all ranks know whether all succeeded.
            peers.together(lambda: pieces.extend(self._snapshot.take()))
            first = peers.rank == 0
            aside = peers.together(lambda: _opened(mine, save.texts) if first else mine)[0]
            peers.together(lambda: see(aside))
            parts = peers.together(lambda: write_part(aside, pieces, peers.rank, peers.world))
            save.bytes = sum(entry.bytes for part in parts for entry in part.files.values())
            peers.together(lambda: complete(aside, save.target, parts) if first else None)
        except Exception:
            shutil.rmtree(mine, ignore_errors=True)  # only rank 0 has made this folder
            raise
        if first:
            prune(self.run, step_of(save.target), self.policy.keep_last, self.policy.keep_every)


def _opened(aside: Path, texts: Mapping[str, str]) -> Path:
    open_aside(aside, texts)
    return aside
