"""Every rank tells the others that it lives and what it does, and stops with one line when one does not.

Messages are sent and read by a thread of their own, which needs neither the process group nor a main thread
that moves. A second thread decides, and waits for nobody.
"""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from showo_dist.faults import evidence
from showo_dist.faults.beats import HOST_RANK, Beat, Board, Channel, Ended, Verdict
from showo_dist.faults.judge import Patience, judge
from showo_dist.faults.progress import Progress
from showo_dist.runtime.exits import SIBLING_GRACE_S, StoppedError, leave
from showo_dist.runtime.ranks import Ranks
from showo_launch.exit_codes import RANK_LOST, USER_ERROR

_SHORTEST_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Settings:
    """How a run is watched.

    Attributes:
        timeout_s: the others stop within it when a rank is dead, frozen or does not move.
        long_s: phases that may take long have so long.
        folder: where evidence goes.
        program: what the line on stderr begins with.
    """

    timeout_s: float
    long_s: float
    folder: Path
    program: str

    @property
    def interval_s(self) -> float:
        """Between two looks at the others, and the longest between two messages of a rank."""
        return min(1.0, self.timeout_s / 20)

    @property
    def brief_s(self) -> float:
        """For each of the last things that a rank does before it stops."""
        return min(2.0, self.timeout_s / 20)

    @property
    def suspicion_s(self) -> float:
        """Silence that tells who is gone, once a collective has failed."""
        return max(2.0, 4 * self.interval_s)


@contextmanager
def watched(ranks: Ranks, progress: Progress, settings: Settings) -> Iterator[None]:
    """Watch over all ranks; collective. A lone rank, or a timeout of 0, is not watched.

    An error inside tells the others. One that only says that another rank is gone becomes the line that names
    that rank, and the end of this process.
    """
    if ranks.world == 1 or not settings.timeout_s:
        yield
        return
    watch = Watch(ranks, progress, settings)
    try:
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.close("done")


class Watch:
    """The two threads, and what the main thread says to them.

    Args:
        ranks: this process among the others; the process group exists.
        progress: of the main thread.
        settings: how.
    """

    def __init__(self, ranks: Ranks, progress: Progress, settings: Settings) -> None:
        self.rank, self.progress, self.settings = ranks.rank, progress, settings
        self.patience = Patience.within(settings.timeout_s, settings.long_s)
        self._beat = Beat(0, socket.gethostname(), os.getpid(), progress.place)
        self._lost_in: list[str] = []  # where the main thread was when it lost contact
        self._news: dict[str, Any] = {}  # fields of this rank's next messages
        self._channel = Channel(ranks, self._beat, max(60.0, settings.timeout_s))
        self.board = Board.first(self._channel.read(), time.monotonic())
        self._talking, self._closing = threading.Lock(), threading.Event()
        loops = (self._talk, self._guard)
        self._threads = [threading.Thread(target=f, name=f.__name__, daemon=True) for f in loops]
        for thread in self._threads:
            thread.start()

    def close(self, ended: Ended, words: str = "") -> None:
        """Tell the others that this rank leaves, and how; stop watching."""
        self._news.update(ended=ended, words=words)
        self._exchange()
        self._linger()
        self._closing.set()
        self.progress.moved.set()
        # One that came back from the store into an interpreter that is gone would abort this process.
        for thread in self._threads:
            thread.join(self.settings.brief_s)

    def fail(self, error: BaseException) -> None:
        """The main thread ends with ``error``; returns where somebody else will show it."""
        if lost_contact(error):
            self._wait_for_verdict(error)
        if isinstance(error, (StoppedError, SystemExit)):
            self.close("done")
        elif isinstance(error, (ValueError, OSError)):
            self.close("mistake")
        else:
            traceback.print_exception(error)
            self.close("failed", f"{type(error).__name__}: {_first_line(error)}")
            leave(1)  # leaving the process group could wait for ever

    def _wait_for_verdict(self, error: BaseException) -> NoReturn:
        """Another rank is gone: the guard finds out which; after a while it is said without a name."""
        self._lost_in = traceback.format_exception(error)
        self.patience = self.patience.alarmed(self.settings.suspicion_s)
        time.sleep(3 * self.settings.suspicion_s)
        own = f"rank {self.rank} (host {self._beat.host}, pid {self._beat.pid})"
        text = f"{own} lost contact in {self.progress.place}: {_first_line(error)}"
        self._stop(Verdict((), text))

    def _exchange(self, read: bool = True) -> None:
        """Send and read; what cannot be is a lack of contact, and is judged as such."""
        if not self._talking.acquire(timeout=self.settings.brief_s):
            return
        try:
            count, place = self._beat.count + 1, self.progress.place
            self._beat = replace(self._beat, count=count, place=place, **self._news)
            with suppress(dist.DistError):
                self._channel.send(self._beat)
                if read:
                    self.board = self.board.heard(self._channel.read(), time.monotonic())
        finally:
            self._talking.release()

    def _talk(self) -> None:
        """A move of the main thread is told soon, so that the others know the last thing it did."""
        read_at = 0.0
        while not self._closing.wait(min(_SHORTEST_INTERVAL_S, self.settings.interval_s)):
            self.progress.moved.wait(self.settings.interval_s)
            self.progress.moved.clear()
            read = time.monotonic() - read_at >= self.settings.interval_s
            read_at = time.monotonic() if read else read_at
            self._exchange(read)

    def _guard(self) -> None:
        looked_at = time.monotonic()
        while not self._closing.wait(self.settings.interval_s / 2):
            now = time.monotonic()
            if now - looked_at > self.patience.silent_s / 2:  # this process itself stood still
                self.board = self.board.forgiven(now)
            looked_at = now
            if "ended" not in self._news:
                self._leave_with_others()
                verdict = judge(self.board, self.rank, self.patience, now)
                if verdict is not None:
                    self._stop(verdict)

    def _leave_with_others(self) -> None:
        """A user's mistake that another rank has met is told by that rank, which needs the time to do so."""
        ended = [r for r, heard in self.board.ranks.items() if heard.beat.ended == "mistake"]
        if ended:
            self._news.update(ended="mistake")
            self._exchange()
            time.sleep(0 if HOST_RANK in ended else 2 * SIBLING_GRACE_S)
            leave(USER_ERROR)

    def _stop(self, verdict: Verdict) -> NoReturn:
        """Tell the others, write down what can be known, say it once, and end this process."""
        self._news.update(verdict=verdict)
        self._exchange()
        name = f"step-{self.progress.place.step:06d}-rank-{self.rank:05d}"
        folder = self.settings.folder
        lines = [verdict.text, "", *evidence.table(self.board), "", *self._lost_in]
        evidence.write_down(folder, name, lines, self.settings.brief_s)
        if self.rank == self._speaker(verdict):
            line = f"{self.settings.program}: {verdict.text}. All ranks stop; see {folder}"
            print(line, file=sys.stderr, flush=True)
        self._linger()
        leave(RANK_LOST, verdict.lost)

    def _speaker(self, verdict: Verdict) -> int:
        """The first rank that is still there to say it."""
        there = (
            rank
            for rank, heard in sorted(self.board.ranks.items())
            if rank not in verdict.lost and not heard.beat.ended
        )
        return next(there, self.rank)

    def _linger(self) -> None:
        """The host of the messages stays until the others have read the last ones."""
        until = time.monotonic() + self.settings.brief_s
        while self.rank == HOST_RANK and time.monotonic() < until and not self._all_leave():
            self._exchange()
            time.sleep(0.02)

    def _all_leave(self) -> bool:
        beats = [heard.beat for rank, heard in self.board.ranks.items() if rank != self.rank]
        return all(beat.ended or beat.verdict for beat in beats)


def lost_contact(error: BaseException) -> bool:
    """Whether an error says that another rank cannot be reached, and nothing about this one.

    Gloo's errors are plain ones that name its source file; one from a background save comes wrapped.
    """
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
