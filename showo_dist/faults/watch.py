"""Watch over all ranks: when one is lost, the others stop within a time limit, with one line that names it.

Two threads do the work, because the main thread may hang in a collective. One sends and reads heartbeats,
through a store that is separate from the process group. The other judges them and waits for no other rank.
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
from showo_dist.faults.judge import Timeouts, judge
from showo_dist.faults.progress import Progress
from showo_dist.faults.signals import StopRequest
from showo_dist.runtime.exits import SIBLING_GRACE_S, StoppedError, described, exit_code_of, leave
from showo_dist.runtime.ranks import Ranks
from showo_launch.exit_codes import MACHINE_ERROR, RANK_LOST, USER_ERROR

_SHORTEST_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Settings:
    """How a run is watched.

    Attributes:
        timeout_s: within it, the others stop when a rank is dead, frozen or does not move.
        long_s: limit of the phases that may take long.
        folder: for the evidence.
        program: begins the line on stderr.
    """

    timeout_s: float
    long_s: float
    folder: Path
    program: str

    @property
    def interval_s(self) -> float:
        """Seconds between two reads of the heartbeats, and at most between two heartbeats of a rank."""
        return min(1.0, self.timeout_s / 20)

    @property
    def brief_s(self) -> float:
        """Seconds for each of the last things that a rank does before it stops."""
        return min(2.0, self.timeout_s / 20)

    @property
    def suspicion_s(self) -> float:
        """Silence that identifies a lost rank after a failed collective or a request to stop, in seconds."""
        return max(2.0, 4 * self.interval_s)


@contextmanager
def watched(
    ranks: Ranks, progress: Progress, settings: Settings, stop: StopRequest
) -> Iterator[None]:
    """Watch over all ranks; collective. A single rank, or a timeout of 0, is not watched.

    The other ranks learn of an error inside. An error that only shows that another rank is lost does not
    leave the context: this process ends with the line that names that rank.

    Args:
        ranks: this process among the others; the process group exists.
        progress: of the main thread.
        settings: time limits and outputs.
        stop: whether this rank is asked to stop. Launchers kill soon after: silent ranks are named earlier.
    """
    if ranks.world == 1 or not settings.timeout_s:
        yield
        return
    watch = Watch(ranks, progress, settings, stop)
    try:
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.close("done")


class Watch:
    """The two threads, and the calls with which the main thread ends them.

    Args:
        ranks: this process among the others; the process group exists.
        progress: of the main thread.
        settings: time limits and outputs.
        stop: whether this rank is asked to stop.
    """

    def __init__(
        self, ranks: Ranks, progress: Progress, settings: Settings, stop: StopRequest
    ) -> None:
        self.rank, self.progress, self.settings = ranks.rank, progress, settings
        self._stop_request = stop
        self.timeouts = Timeouts.within(settings.timeout_s, settings.long_s)
        self._beat = Beat(0, socket.gethostname(), os.getpid(), progress.place)
        self._connection_error: list[
            str
        ] = []  # traceback of the main thread, if it lost a connection
        self._news: dict[str, Any] = {}  # fields of Beat to set in this rank's next heartbeats
        self._channel = Channel(ranks, self._beat, max(60.0, settings.timeout_s))
        self.board = Board.first(self._channel.read(), time.monotonic())
        self._changing = threading.Lock()  # of the board
        self._exchanging, self._closing = threading.Lock(), threading.Event()
        loops = (self._exchange_loop, self._judge_loop)
        self._threads = [threading.Thread(target=f, name=f.__name__, daemon=True) for f in loops]
        for thread in self._threads:
            thread.start()

    def close(self, ended: Ended, error: str = "") -> None:
        """Send the others how this rank ends, and stop watching."""
        self._news.update(ended=ended, error=error)
        self._exchange()
        self._serve_last_reads()
        self._closing.set()
        self.progress.moved.set()
        # A thread that returned from the store after the interpreter's end would abort this process.
        for thread in self._threads:
            thread.join(self.settings.brief_s)

    def fail(self, error: BaseException) -> None:
        """The main thread ends with ``error``; returns if the caller has to show it."""
        if lost_contact(error):
            self._wait_for_verdict(error)
        if isinstance(error, (StoppedError, SystemExit)):
            self.close("done")
        elif isinstance(error, (ValueError, OSError)) and exit_code_of(error) == USER_ERROR:
            self.close("user_error")
        else:
            if isinstance(error, OSError):
                line = described(error)
                print(f"{self.settings.program}: {self._name}: {line}", file=sys.stderr, flush=True)
            else:
                traceback.print_exception(error)
                line = f"{type(error).__name__}: {_in_one_line(error)}"
            self.close("failed", line)
            leave(MACHINE_ERROR)  # destroying the process group could hang

    @property
    def _name(self) -> str:
        return f"rank {self.rank} (host {self._beat.host}, pid {self._beat.pid})"

    def _wait_for_verdict(self, error: BaseException) -> NoReturn:
        """Another rank is lost: the judging thread finds out which and ends this process.

        If it cannot within three times the shortened limit, the process ends without a name.
        """
        self._connection_error = traceback.format_exception(error)
        self.timeouts = self.timeouts.shortened(self.settings.suspicion_s)
        time.sleep(3 * self.settings.suspicion_s)
        if self._news.get("ended") == "user_error":
            time.sleep(3 * SIBLING_GRACE_S)  # the judging thread ends this process first
        text = f"{self._name} lost contact in {self.progress.place}: {_in_one_line(error)}"
        self._stop(Verdict((), text))

    def _exchange(self, read: bool = True) -> None:
        """Send a heartbeat and read the others'; on failure ``contact_at`` stays as it is and is judged."""
        if not self._exchanging.acquire(timeout=self.settings.brief_s):
            return
        try:
            count, place = self._beat.count + 1, self.progress.place
            self._beat = replace(self._beat, count=count, place=place, **self._news)
            with suppress(dist.DistError):
                self._channel.send(self._beat)
                if read:
                    beats = self._channel.read()
                    with self._changing:
                        self.board = self.board.updated(beats, time.monotonic())
        finally:
            self._exchanging.release()

    def _exchange_loop(self) -> None:
        """Send at each move of the main thread, so that others know its place; read once per interval."""
        read_at = 0.0
        while not self._closing.wait(min(_SHORTEST_INTERVAL_S, self.settings.interval_s)):
            self.progress.moved.wait(self.settings.interval_s)
            self.progress.moved.clear()
            read = time.monotonic() - read_at >= self.settings.interval_s
            read_at = time.monotonic() if read else read_at
            self._exchange(read)

    def _judge_loop(self) -> None:
        judged_at = time.monotonic()
        while not self._closing.wait(self.settings.interval_s / 2):
            # The board first: one that is read after a stop would be judged at a time before it.
            board, now = self.board, time.monotonic()
            timeouts = self._timeouts_at(now)
            # A long gap between two rounds means that this process was stopped (Ctrl-Z, a suspended
            # machine). Its board is as old, so no other rank may be judged by it.
            if now - judged_at > timeouts.silent_s / 2:
                with self._changing:
                    self.board = board = self.board.restarted(now)
            judged_at = now
            if "ended" not in self._news:
                self._leave_after_user_error()
                verdict = judge(board, self.rank, timeouts, now)
                if verdict is not None:
                    self._stop(verdict)

    def _timeouts_at(self, now: float) -> Timeouts:
        """The limits; shortened while this rank is asked to stop and does not get on in a short phase.

        A launcher that lost a rank asks the others to stop, and kills them 30 seconds later. With NCCL their
        collectives do not fail. In a long phase, such as a save, a busy rank may be silent for a while.
        """
        short_s = self.settings.suspicion_s
        waits = bool(self._stop_request) and now - self.progress.moved_at > short_s
        if not waits or any(last.beat.place.may_take_long for last in self.board.ranks.values()):
            return self.timeouts
        return self.timeouts.shortened(short_s)

    def _leave_after_user_error(self) -> None:
        """End this process after another rank met a user's mistake; that rank reports it.

        Launchers kill all ranks soon after the first one ends. So the others wait for the rank that reports,
        unless it is rank 0, which reports without delay.
        """
        ended = [r for r, last in self.board.ranks.items() if last.beat.ended == "user_error"]
        if ended:
            self._news.update(ended="user_error")
            self._exchange()
            time.sleep(0 if HOST_RANK in ended else 2 * SIBLING_GRACE_S)
            leave(USER_ERROR)

    def _stop(self, verdict: Verdict) -> NoReturn:
        """Send the verdict to the others, write the evidence, print one line on one rank, and exit."""
        self._news.update(verdict=verdict)
        self._exchange()
        name = f"step-{self.progress.place.step:06d}-rank-{self.rank:05d}"
        folder = self.settings.folder
        lines = [verdict.text, "", *evidence.table(self.board), "", *self._connection_error]
        evidence.write(folder, name, lines, self.settings.brief_s)
        if self.rank == self._first_survivor(verdict):
            line = f"{self.settings.program}: {verdict.text}. All ranks stop; see {folder}"
            print(line, file=sys.stderr, flush=True)
        self._serve_last_reads()
        leave(RANK_LOST, verdict.lost)

    def _first_survivor(self, verdict: Verdict) -> int:
        """The first rank that still runs; it prints the line."""
        running = (
            rank
            for rank, last in sorted(self.board.ranks.items())
            if rank not in verdict.lost and not last.beat.ended
        )
        return next(running, self.rank)

    def _serve_last_reads(self) -> None:
        """The host of the store stays until the others have read the last heartbeats."""
        until = time.monotonic() + 3 * self.settings.interval_s
        while self.rank == HOST_RANK and time.monotonic() < until and not self._all_leave():
            self._exchange()
            time.sleep(0.02)

    def _all_leave(self) -> bool:
        beats = [last.beat for rank, last in self.board.ranks.items() if rank != self.rank]
        return all(beat.ended or beat.verdict for beat in beats)


# Errors of NCCL that are this rank's own, such as a full GPU; torch raises the same type for those of others.
_OWN_ERRORS = (
    *("ncclUnhandledCudaError", "ncclInternalError"),
    *("ncclInvalidArgument", "ncclInvalidUsage"),
)


def lost_contact(error: BaseException) -> bool:
    """Whether an error only shows that another rank cannot be reached.

    Gloo raises plain errors that name its source file; an error of a background save arrives wrapped.
    """
    text = str(error)
    if isinstance(error, dist.DistError):
        return not any(name in text for name in _OWN_ERRORS)
    return "gloo/transport" in text


def _in_one_line(error: BaseException) -> str:
    """The whole text: NCCL puts the cause on the last of several lines."""
    return " ".join(str(error).split())[:1000]
