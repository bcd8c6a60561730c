"""Find the rank that slows the others down: time each rank's own work, without its waits for other ranks."""

import socket
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

_STEADY = 3  # reports in a row in which a rank must be slow before it is logged


class Pace:
    """Seconds that this rank spends on data and forward passes, compared over the ranks in each report.

    All ranks leave a step together, so the step time is the same on all of them. Reading data and the forward
    pass do not wait for other ranks, except under ZeRO-3, where the forward pass gathers weights: there only
    slow data shows.

    Args:
        device: of this rank.
        slow_factor: a rank is logged when it takes this many times the median of the others; 0: never.
        log: takes one line for the log.
    """

    def __init__(
        self, device: torch.device, slow_factor: float, log: Callable[[str], None]
    ) -> None:
        self.device, self.slow_factor, self.log = device, slow_factor, log
        self._hosts = [socket.gethostname()] * dist.get_world_size()
        dist.all_gather_object(self._hosts, socket.gethostname())
        self._seconds, self._steps = 0.0, 0
        self._forward = _Clock(device)
        self._slow_rank, self._reports = -1, 0

    def enter(self, phase: str) -> None:
        """Note that a phase of a step begins, named as by :class:`~showo_dist.training.step.Stepper`."""
        if len(self._hosts) == 1:
            return
        if phase == "forward":
            self._forward.start()
        elif phase == "backward":
            self._forward.stop()

    def add_data(self, seconds: float) -> None:
        """Add the time that a step waited for its data."""
        self._seconds += seconds
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Metrics since the last call, in seconds per step; collective. Empty for a single rank."""
        if len(self._hosts) == 1:
            return {}
        own = (self._seconds + self._forward.read()) / max(1, self._steps)
        self._seconds, self._steps = 0.0, 0
        mine = torch.tensor(own, dtype=torch.float64, device=self.device)
        every = [torch.empty_like(mine) for _ in self._hosts]
        dist.all_gather(every, mine)
        seconds_R = torch.stack(every).cpu()
        slowest = int(seconds_R.argmax())
        longest = float(seconds_R[slowest])
        others = float(torch.cat([seconds_R[:slowest], seconds_R[slowest + 1 :]]).quantile(0.5))
        self._log_slow(slowest, longest, others)
        return {
            "rank_s_max": longest,
            "rank_s_median": float(seconds_R.quantile(0.5)),
            "rank_s_min": float(seconds_R.min()),
            "slowest_rank": float(slowest),
        }

    def _log_slow(self, rank: int, seconds: float, others: float) -> None:
        """Log a rank once when it has been slow in several reports in a row."""
        if not self.slow_factor or seconds <= self.slow_factor * others:
            self._slow_rank, self._reports = -1, 0
            return
        self._reports = self._reports + 1 if rank == self._slow_rank else 1
        self._slow_rank = rank
        if self._reports == _STEADY:
            self.log(
                f"rank {rank} (host {self._hosts[rank]}) is slow: {seconds:.3f} s per step on data and "
                f"forward pass, the median of the others is {others:.3f} s"
            )


class _Clock:
    """A stopwatch of the host, or of the GPU by events, so that the host does not have to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._began: float | torch.cuda.Event | None = None
        self._total = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def _now(self) -> float | torch.cuda.Event:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self._began = self._now()

    def stop(self) -> None:
        began, now = self._began, self._now()
        if isinstance(began, float) and isinstance(now, float):
            self._total += now - began
        elif isinstance(began, torch.cuda.Event) and isinstance(now, torch.cuda.Event):
            self._events.append((began, now))

    def read(self) -> float:
        """Seconds since the last call."""
        for began, ended in self._events:
            ended.synchronize()
            self._total += began.elapsed_time(ended) / 1000
        total, self._total, self._events = self._total, 0.0, []
        return total
