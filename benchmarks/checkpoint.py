"""What a checkpoint costs the training loop: written in the background, or while training waits.

Loops of optimizer steps with a save in the background and with one that is waited for run in turn. A loop
begins and ends with undisturbed steps; between them it goes on until its save is done. Its stall is what that
takes beyond so many undisturbed steps: the waiting, and what the writer takes from the machine meanwhile.
``blocked`` is the waiting alone; ``queued``, for how long the training thread could have run and had no core;
``CPU``, what the save takes of the cores beyond the steps. With OMP_NUM_THREADS=1 on two cores the writer has
one of its own, as beside a GPU, and queueing is other programs' doing.
Files are written to ``$TMPDIR``, had on the disk, and read back from there. Loads are timed with the files
dropped from memory, with and without the comparison of checksums.
"""

import argparse
import ctypes
import operator
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import arguments, peak_bytes, report
from single_pass import Sizes, build_model, make_sequence
from torch.optim.lr_scheduler import LambdaLR

from showo_dist.checkpoint import BatchShape, CheckpointReader, RunState
from showo_dist.checkpoint.writer import CheckpointWriter
from showo_dist.config.experiment import ExperimentConfig
from showo_dist.runtime.exits import run_and_exit
from showo_dist.runtime.ranks import joined
from showo_dist.sequences import pack
from showo_dist.training.step import Stepper
from showo_dist.training.torch_engine import TorchEngine

CPU = torch.device("cpu")
SIZES = {
    "tiny": Sizes(2, 64, 2, mmu=0, recon=1, image=16, text_tokens=200, codebook=64, clip_tokens=36),
    "small": Sizes(12, 512, 8, mmu=0, recon=1, image=64, clip_tokens=64),  # 100 M parameters
    "medium": Sizes(24, 1024, 16, mmu=0, recon=1, image=64, clip_tokens=64),  # 420 M
    "show-o": Sizes(24, 2048, 32, mmu=0, recon=8, image=1024),  # 1.45 B
}
STEPS = 4  # undisturbed ones before the save, and after it
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
BACKGROUND, WAITING = "in the background", "training waits"


class Loop:
    """Training of a model of one size on one batch."""

    def __init__(self, sizes: Sizes, device: torch.device, folder: Path) -> None:
        self.device, self.folder = device, folder
        model = build_model(sizes, device, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        schedule = LambdaLR(optimizer, lambda step: 1.0)
        self.engine = TorchEngine(
            model, optimizer, schedule, micro_steps=1, max_norm=None, bf16=device.type == "cuda"
        )
        self.stepper = Stepper(self.engine, {"recon": 1.0}, "global", device)
        sequences = [make_sequence("recon", i, sizes) for i in range(sizes.recon)]
        batch = pack(sequences, pad_id=sizes.vocabulary.pad, feature_width=model.feature_width)
        self.window = [batch.to(device)]
        self.step = 0
        self.writers = {
            name: CheckpointWriter(
                folder / name.replace(" ", "-"),
                ExperimentConfig(save_asynchronously=name == BACKGROUND, keep_last=1),
                {},
                timeout_s=3600,
            )
            for name in (BACKGROUND, WAITING)
        }

    def state(self) -> RunState:
        batch = BatchShape(1, 1, {"recon": len(self.window)})
        steps = self.engine.optimizer_steps()
        return RunState(self.step, {}, {}, steps, None, {}, batch)

    def train_one(self) -> None:
        self.step += 1
        self.stepper(self.window)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def undisturbed(self) -> "Stretch":
        """A step without a save."""
        start = Stretch.now()
        for _ in range(STEPS):
            self.train_one()
        return Stretch.since(start) / STEPS

    def __call__(self, mode: str) -> "Sample":
        """Run one loop."""
        writer, before, steps = self.writers[mode], self.undisturbed(), 0
        start, blocked_s = Stretch.now(), writer.blocked_s
        writer.save(self.engine, self.state())
        while writer.is_busy:
            self.train_one()
            steps += 1
            writer.poll()
        whole, blocked_s = Stretch.since(start), writer.blocked_s - blocked_s
        after = self.undisturbed()
        step = (before + after) / 2
        cost = whole - step * steps
        return Sample(step.wall_s, cost, blocked_s, writer.took_s)


def _queued_s() -> float:
    """For how long this thread was ready and had no core, as Linux counts it; elsewhere 0."""
    path = Path("/proc/thread-self/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


@dataclass(frozen=True)
class Stretch:
    """Seconds by the clock, of all cores for this process, and of this thread ready without a core."""

    wall_s: float
    cpu_s: float
    queued_s: float

    @classmethod
    def now(cls) -> "Stretch":
        return cls(time.perf_counter(), time.process_time(), _queued_s())

    @classmethod
    def since(cls, start: "Stretch") -> "Stretch":
        return cls.now() - start

    def __add__(self, other: "Stretch") -> "Stretch":
        return Stretch(*map(operator.add, astuple(self), astuple(other)))

    def __mul__(self, count: float) -> "Stretch":
        return Stretch(*(count * seconds for seconds in astuple(self)))

    def __sub__(self, other: "Stretch") -> "Stretch":
        return self + other * -1

    def __truediv__(self, count: float) -> "Stretch":
        return self * (1 / count)


@dataclass(frozen=True)
class Sample:
    """One loop: an undisturbed step, what the save cost, how long training waited for it, how long it was."""

    step_s: float
    cost: Stretch
    blocked_s: float
    save_s: float


@dataclass
class Samples:
    """All loops of one mode."""

    loops: list[Sample] = field(default_factory=list)

    def median(self, of: Callable[[Sample], float]) -> float:
        return statistics.median(of(sample) for sample in self.loops)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def forget_cached(folder: Path) -> None:
    """Make the next read come from the disk."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def load(loop: Loop, folder: Path, check: bool) -> None:
    """As a run goes on from a checkpoint."""
    reader = CheckpointReader(folder, check=check)
    loop.engine.restore(reader.read_piece, reader.state.optimizer_steps)


def load_rate(loop: Loop, folder: Path, check: bool) -> float:
    """MB/s of a load from the disk."""
    forget_cached(folder)
    start = time.perf_counter()
    load(loop, folder, check)
    return bytes_of(folder) / 1e6 / (time.perf_counter() - start)


def measure(loop: Loop, repeats: int) -> dict[str, Samples]:
    """The loops in turn; each mode has saved before."""
    samples = {mode: Samples() for mode in (BACKGROUND, WAITING)}
    for _ in range(repeats):
        for mode, kept in samples.items():
            kept.loops.append(loop(mode))
    return samples


def rows_of(samples: dict[str, Samples], size: int, peaks: dict[str, int | None]) -> list[dict]:
    """One line per mode."""
    rows: list[dict[str, Any]] = []
    for mode in (BACKGROUND, WAITING):
        save_s = samples[mode].median(lambda sample: sample.save_s)
        peak = peaks[mode]
        rows.append(
            {
                "loop": mode,
                "step s": samples[mode].median(lambda sample: sample.step_s),
                "stall s": samples[mode].median(lambda sample: sample.cost.wall_s),
                "queued s": samples[mode].median(lambda sample: sample.cost.queued_s),
                "blocked s": samples[mode].median(lambda sample: sample.blocked_s),
                "CPU s": samples[mode].median(lambda sample: sample.cost.cpu_s),
                "save s": save_s,
                "save MB/s": size / 1e6 / save_s,
                "peak host MB": None if peak is None else peak / 1e6,
            }
        )
    return rows


def own(row: dict[str, Any]) -> float:
    """Seconds of a stall that are not spent in want of a core."""
    return float(row["stall s"] - row["queued s"])


def run(options: argparse.Namespace, folder: Path) -> None:
    sizes, device = SIZES[options.size], torch.device(options.device)
    loop = Loop(sizes, device, folder)
    # The first save of each writer, which takes its memory; a GPU's copy is in host memory too.
    peaks = {mode: peak_bytes(lambda m=mode: loop(m), CPU) for mode in (BACKGROUND, WAITING)}
    samples = measure(loop, options.repeats)
    saved = loop.writers[BACKGROUND].last_complete
    assert saved is not None
    rows = rows_of(samples, bytes_of(saved), peaks)
    background, waiting = rows
    peak = peak_bytes(lambda: load(loop, saved, True), CPU)
    findings = {
        "stall, background / waiting": background["stall s"] / waiting["stall s"],
        "the same, not queued": own(background) / own(waiting),
        "blocked, background / waiting": background["blocked s"] / waiting["blocked s"],
        "load with checksums, MB/s": load_rate(loop, saved, True),
        "load without, MB/s": load_rate(loop, saved, False),
        "checkpoint, MB": bytes_of(saved) / 1e6,
    }
    if peak is not None:
        findings["peak host MB of a load"] = peak / 1e6
    parameters = sum(p.numel() for p in loop.engine.module.parameters())
    report("checkpoint", rows, findings, {**asdict(sizes), "parameters": parameters}, options)


def _keep_freed_memory() -> None:
    """Let memory that was freed stay with the process: new pages take long on some machines, now and then."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def main() -> int:
    options = arguments(__doc__, list(SIZES))
    _keep_freed_memory()
    with joined(always_group=True):
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-benchmark-"))
        try:
            run(options, folder)
        finally:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    run_and_exit("checkpoint", main)
