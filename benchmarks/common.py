"""Shared by the benchmarks: interleaved timing, peak memory, the printed table and its JSON."""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """Seconds of one stage.

    Attributes:
        wall_s: wall-clock time; on a GPU between two CUDA events.
        cpu_s: CPU time of this process, all threads; other processes of the machine disturb it least.
    """

    wall_s: float
    cpu_s: float


class Clock:
    """Timer for the stages of one side of a comparison.

    Args:
        device: where the work is done; a GPU is synchronized before and after a stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._samples: dict[str, list[Timing]] = {}

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        """Do the work and record its time under ``stage``."""
        cpu_start = time.process_time()
        result, wall_s = (self._on_gpu if self.device.type == "cuda" else self._on_cpu)(work)
        timing = Timing(wall_s, time.process_time() - cpu_start)
        self._samples.setdefault(stage, []).append(timing)
        return result

    def _on_cpu(self, work: Callable[[], Result]) -> tuple[Result, float]:
        start = time.perf_counter()
        result = work()
        return result, time.perf_counter() - start

    def _on_gpu(self, work: Callable[[], Result]) -> tuple[Result, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        result = work()
        end.record()
        torch.cuda.synchronize(self.device)
        return result, start.elapsed_time(end) / 1e3

    def medians(self) -> dict[str, Timing]:
        """Return the median of each stage."""
        return {
            stage: Timing(
                statistics.median(sample.wall_s for sample in samples),
                statistics.median(sample.cpu_s for sample in samples),
            )
            for stage, samples in self._samples.items()
        }


Side = Callable[[Clock], object]


def interleaved(
    sides: Mapping[str, Side], device: torch.device, repeats: int, warm_up: bool = True
) -> dict[str, dict[str, Timing]]:
    """Run all sides in turn, ``repeats`` times, so that a disturbance affects all of them.

    Args:
        sides: the sides of the comparison, by name.
        device: where they run.
        repeats: how often each is timed.
        warm_up: run each side once before; False if that was done already.

    Returns:
        Median timings by side and stage.
    """
    for side in sides.values() if warm_up else ():
        side(Clock(device))
    clocks = {name: Clock(device) for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            side(clocks[name])
    return {name: clock.medians() for name, clock in clocks.items()}


def _resident(key: str) -> int:
    """Read an entry of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak memory of ``work`` above the memory in use before; None if it cannot be measured."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system before measuring
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (VmHWM)
    work()
    return _resident("VmHWM") - before


def arguments(
    description: str, sizes: Sequence[str], repeats: int = 5, **switches: str
) -> argparse.Namespace:
    """Parse the common options and ``switches`` (name: help); ``repeats``: the default of ``--repeats``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", choices=sizes, help="default: small on a CPU, show-o on a GPU")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "bf16", "fp32"], help="auto: as in training"
    )
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parsed = parser.parse_args()
    parsed.size = parsed.size or {"cpu": "small", "cuda": "show-o"}[parsed.device]
    return parsed


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the versions that the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a table; the first column is aligned to the left, the others to the right."""
    columns = list(rows[0])
    lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    findings: Mapping[str, float],
    settings: Mapping[str, Any],
    options: argparse.Namespace,
) -> None:
    """Print the table and the findings last; write everything to ``--json``.

    Args:
        name: of the benchmark.
        rows: all with the same columns, units in their names; None is printed as a dash.
        findings: the comparisons that the benchmark is for.
        settings: sizes.
        options: from :func:`arguments`.
    """
    about = machine(torch.device(options.device))
    if options.json:
        result = {"benchmark": name, "machine": about, "settings": dict(settings)}
        result |= {"rows": list(rows), "findings": dict(findings)}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(", ".join(f"{key} {value}" for key, value in {**about, **settings}.items()))
    print(f"\n{_table(rows)}\n")
    for finding, value in findings.items():
        print(f"{finding:<60} {value:.3g}")
