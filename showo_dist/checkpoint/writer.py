"""Writing checkpoints while training goes on."""

import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showo_dist.checkpoint.commit import Peers, SaveError, complete, one_line, open_aside, see
from showo_dist.checkpoint.folders import complete_checkpoints, folder_of, hidden, prune
from showo_dist.checkpoint.parts import write_part
from showo_dist.checkpoint.snapshot import Snapshot
from showo_dist.checkpoint.state import STATE, RunState
from showo_dist.config.experiment import ExperimentConfig
from showo_dist.training import engine_state


@dataclass
class _Save:
    """One save under way."""

    target: Path
    texts: Mapping[str, str]
    problem: str | None = None
    bytes: int = 0
    seconds: float = 0.0


class CheckpointWriter:
    """Writes the checkpoints of one run. All methods are called by every rank alike, in the training thread.

    :meth:`save` returns at once; a thread of every rank copies that rank's part of the state to host memory,
    writes it aside, has it on the disk, reads it back, and agrees with the others; then rank 0 makes
    the whole visible by one rename. Training may do anything meanwhile: the optimizer's step waits for the
    copy by itself. A kill at any moment leaves the checkpoints that were complete before.

    Args:
        run: the run's folder, the same one for all ranks.
        policy: ``save_asynchronously``, ``on_save_error``, ``keep_last`` and ``keep_every``.
        texts: further files of each checkpoint, by name.
        timeout_s: how long the slowest rank may take for its part.

    Attributes:
        took_s: how long the last save that was accounted for has taken, in the background or not.
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
        self._watched: Any = None
        self._in_save_s = self.took_s = 0.0

    @property
    def last_complete(self) -> Path | None:
        """The newest checkpoint that can be gone on from; None without any."""
        found = complete_checkpoints(self.run)
        return found[-1] if found else None

    @property
    def blocked_s(self) -> float:
        """Seconds that saves have kept the training thread waiting, in all; a GPU's own waits not counted."""
        return self._in_save_s + self._snapshot.waited_s

    @property
    def is_busy(self) -> bool:
        """Whether a save was begun that neither :meth:`poll` nor a later call has accounted for."""
        return self._thread is not None

    def save(self, engine: Any, state: RunState) -> Path:
        """Begin to write a checkpoint, after waiting for the one before.

        Args:
            engine: between two optimizer steps.
            state: counters and positions that go with its weights.

        Returns:
            The folder that will appear; :meth:`poll` and :meth:`finish` tell when, and what went wrong.

        Raises:
            SaveError: the one before failed, and ``on_save_error`` is ``stop``.
        """
        start = time.perf_counter()
        self._settle()
        target = folder_of(self.run, state.step)
        self._watch(engine)
        self._snapshot.begin(engine_state.owned(engine, self._peers.rank, self._peers.world))
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
        """Lines for the log about saves that ended since the last call; cheap, once per optimizer step.

        Raises:
            SaveError: a save failed, and ``on_save_error`` is ``stop``; on all ranks at the same call.
        """
        thread = self._thread
        if thread is not None and self._peers.all_agree(not thread.is_alive()):
            self._settle()
        lines, self._lines = self._lines, []
        return lines

    def finish(self) -> list[str]:
        """Wait for the save under way: at the end of the run, and before an exit.

        Returns:
            Lines as :meth:`poll`.

        Raises:
            SaveError: the newest state is not on the disk, for its save failed.
        """
        self._settle()
        if self._failure is not None:
            raise self._failure
        return self.poll()

    def _watch(self, engine: Any) -> None:
        """Have the optimizer's step wait for the copy."""
        if self._watched is not engine:
            engine_state.before_updates(engine, self._snapshot.before_update)
            self._watched = engine

    def _settle(self) -> None:
        """Wait for the save under way, if any, and account for it."""
        if self._thread is None or self._current is None:
            return
        self._thread.join()
        done, self._thread, self._current = self._current, None, None
        self.took_s = done.seconds
        if done.problem is None:
            self._failure = None
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
        """The writing thread."""
        start = time.perf_counter()
        try:
            self._write_together(save)
        except Exception as error:  # the training thread must hear of everything
            save.problem = one_line(error)
        save.seconds = time.perf_counter() - start

    def _write_together(self, save: _Save) -> None:
        """Copy, write, make visible: the ranks go from one to the next together, or all of them fail."""
        peers, pieces = self._peers, self._snapshot.take()
        mine = hidden(save.target, "partial")
        try:
            first = peers.rank == 0
            aside = peers.together(lambda: _opened(mine, save.texts) if first else mine)[0]
            peers.together(lambda: see(aside))
            parts = peers.together(lambda: write_part(aside, pieces, peers.rank, peers.world))
            save.bytes = sum(entry.bytes for part in parts for entry in part.files.values())
            peers.together(lambda: complete(aside, save.target, parts) if first else None)
        except Exception:
            shutil.rmtree(mine, ignore_errors=True)  # only rank 0's was ever made
            raise
        if first:
            prune(self.run, self.policy.keep_last, self.policy.keep_every)


def _opened(aside: Path, texts: Mapping[str, str]) -> Path:
    open_aside(aside, texts)
    return aside
