"""A copy of a rank's state in host memory, made while training continues."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from showo_dist.checkpoint.slices import Piece


class Snapshot:
    """Host memory for one rank's pieces, reused by every save.

    Weights and moments change only in the optimizer's step, so training does not stop when a save begins: the
    copy runs during the next forward and backward (on a GPU on its own stream into pinned memory, on a CPU in
    the thread that calls :meth:`take`), and :meth:`before_update` makes the optimizer's step wait for it.

    Attributes:
        waited_s: total seconds that the training thread has waited in :meth:`before_update`.
    """

    def __init__(self) -> None:
        self._buffer_N = torch.empty(0)
        self._sources: list[Piece] = []
        self._copies: list[Piece] = []
        self._stream: torch.cuda.Stream | None = None
        self._on_gpu: torch.cuda.Event | None = None
        self._on_cpu = threading.Event()
        self._on_cpu.set()
        self.waited_s = 0.0

    def reserve(self, pieces: Sequence[Piece]) -> None:
        """Page-lock the memory for pieces on a GPU, which takes seconds, before training begins."""
        if any(piece.values_N.is_cuda for piece in pieces):
            self._laid_out(pieces)

    def begin(self, pieces: Sequence[Piece]) -> None:
        """Start copying; called in the training thread between two optimizer steps."""
        self._sources, self._copies = list(pieces), self._laid_out(pieces)
        if any(piece.values_N.is_cuda for piece in pieces):
            self._copy_from_gpu()
        if not all(piece.values_N.is_cuda for piece in pieces):
            self._on_cpu.clear()

    def before_update(self) -> None:
        """Wait until the copy no longer reads the engine's memory; called in the training thread."""
        if self._on_gpu is not None:
            # The stream waits, this thread does not.
            torch.cuda.current_stream().wait_event(self._on_gpu)
            self._on_gpu = None
        start = time.perf_counter()
        self._on_cpu.wait()
        self.waited_s += time.perf_counter() - start

    def take(self) -> list[Piece]:
        """Finish the copy in the writing thread and return it; valid until the next :meth:`begin`."""
        try:
            for source, copy in zip(self._sources, self._copies, strict=True):
                if not source.values_N.is_cuda:
                    copy.values_N.copy_(source.values_N)
        finally:
            self._sources = []
            self._on_cpu.set()
        if self._stream is not None:
            self._stream.synchronize()
        return self._copies

    def _laid_out(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same pieces in the buffer."""
        sizes = [len(piece.values_N) for piece in pieces]
        # The buffer is made once; page-locking memory is slow.
        if sum(sizes) > len(self._buffer_N):
            self._buffer_N = torch.empty(sum(sizes), dtype=torch.float32)
            if any(piece.values_N.is_cuda for piece in pieces):
                _lock_pages(self._buffer_N)
        runs = self._buffer_N[: sum(sizes)].split(sizes)
        return [replace(p, values_N=run) for p, run in zip(pieces, runs, strict=True)]

    def _copy_from_gpu(self) -> None:
        self._stream = self._stream or torch.cuda.Stream()
        # The copy must see the weights of the step that was just queued.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for source, copy in zip(self._sources, self._copies, strict=True):
                if source.values_N.is_cuda:
                    copy.values_N.copy_(source.values_N, non_blocking=True)
            self._on_gpu = self._stream.record_event()


def _lock_pages(buffer_N: Tensor) -> None:
    """Page-lock memory in place, until the process ends; copies from a GPU to it need not wait.

    ``pin_memory`` would round the size up to a power of two: up to twice the weights and moments of a rank.
    """
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(int(runtime.cudaHostRegister(buffer_N.data_ptr(), buffer_N.nbytes, 0)))
