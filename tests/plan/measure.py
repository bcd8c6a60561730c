"""One rank of a real run that measures the quantities of a plan: peak memory, bytes sent, seconds."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from showo_dist.config import TrainConfig, load
from showo_dist.models.showo import build_showo
from showo_dist.plan.batch import AssumedSamples
from showo_dist.runtime.exits import run_and_exit
from showo_dist.runtime.ranks import joined
from showo_dist.sequences import FLOWS, TOKEN_MULTIPLE, PackedBatch
from showo_dist.training.deepspeed_engine import initialize
from showo_kernels import select_backend

CPU = torch.device("cpu")
ATTENTION, _ = select_backend("auto", CPU)
RATES: list[str | None] = [None, "10mbit", "20mbit", "40mbit"]


def count_all_threads() -> None:
    """Let torch's CPU allocator count the releases of every thread.

    A profiler counts only the threads that it watches, and misses releases of gloo's threads. This flag of
    the allocator is not exposed in Python.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def live_bytes(measured: profile) -> list[tuple[int, int]]:
    """(time in ns, live bytes) after every allocation; counts allocations since the profile began."""
    assert measured.profiler is not None and measured.profiler.kineto_results is not None
    nodes = list(measured.profiler.kineto_results.experimental_event_tree())
    found = []
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.tag == _EventType.Allocation:
            done = node.extra_fields
            found.append((node.start_time_ns, done.total_allocated, done.alloc_size))
    found.sort()
    _, total, size = found[0]
    return [(at, live - (total - size)) for at, live, _ in found]


def peaks_between(totals: list[tuple[int, int]], begins_ns: list[int]) -> list[int]:
    """Largest number of live bytes in each step."""
    tops = [0] * len(begins_ns)
    for at, live in totals:
        step = bisect_right(begins_ns, at) - 1
        if step >= 0:
            tops[step] = max(tops[step], live)
    return tops


def train_step(engine: Any, batch: PackedBatch, micro_steps: int) -> None:
    """One optimizer step."""
    scale_F = torch.ones(len(FLOWS), device=batch.position_ids_T.device) / batch.real_tokens
    for _ in range(micro_steps):
        loss, _ = engine(batch, flow_scale_F=scale_F)
        engine.backward(loss)
        del loss
        engine.step()


def peak_bytes(config: TrainConfig, steps: int = 3) -> int:
    """Peak of live bytes in a training step, counting all allocations of model and training.

    The median of all steps but the first, in which ZeRO-3 does not prefetch yet; the others are alike.
    """
    count_all_threads()
    batch = AssumedSamples(config).micro_batch(TOKEN_MULTIPLE)
    begins_ns = []
    gc.collect()  # so that the previous case's garbage is not released during the measurement
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        engine = initialize(build_showo(config.model.showo, ATTENTION), config, CPU)
        for _ in range(steps):
            gc.collect()  # at a fixed place, instead of whenever Python decides
            begins_ns.append(time.time_ns())
            train_step(engine, batch, config.training.gradient_accumulation_steps)
    engine.destroy()
    return round(median(peaks_between(live_bytes(measured), begins_ns)[1:]))


def gpu_peak_bytes(config: TrainConfig, device: torch.device) -> int:
    """The same on a GPU, counted by its allocator."""
    batch = AssumedSamples(config).micro_batch(TOKEN_MULTIPLE).to(device)
    before = torch.cuda.memory_allocated(device)
    engine = initialize(build_showo(config.model.showo, "flash"), config, device)
    train_step(engine, batch, config.training.gradient_accumulation_steps)
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    train_step(engine, batch, config.training.gradient_accumulation_steps)
    peak = torch.cuda.max_memory_allocated(device) - before
    engine.destroy()
    return peak


def _sent() -> int:
    """Bytes sent by this host's network interface so far."""
    interface = os.environ["GLOO_SOCKET_IFNAME"]
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())


def _shape(rate: str | None) -> None:
    """Limit the rate of this host's network interface."""
    device = ["dev", os.environ["GLOO_SOCKET_IFNAME"], "root"]
    subprocess.run(["tc", "qdisc", "del", *device], check=False, capture_output=True)
    if rate:
        bucket = ["tbf", "rate", rate, "burst", "65536", "latency", "100ms"]
        subprocess.run(["tc", "qdisc", "add", *device, *bucket], check=True)


def _seconds(step: Callable[[], None]) -> float:
    """Seconds until every rank has finished the step."""
    start = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - start


def traffic(config: TrainConfig, rates: list[str | None], steps: int = 3) -> list[dict[str, float]]:
    """Bytes sent and seconds of a step at each rate of the link; None: unlimited.

    The seconds are those of the fastest step, because a slower one waited for something else.
    """
    batch = AssumedSamples(config).micro_batch(TOKEN_MULTIPLE)
    engine = initialize(build_showo(config.model.showo, ATTENTION), config, CPU)
    step = partial(train_step, engine, batch, config.training.gradient_accumulation_steps)
    for _ in range(2):
        step()
    found = []
    for rate in rates:
        dist.barrier()
        _shape(rate)
        dist.barrier()
        sent = _sent()
        seconds = [_seconds(step) for _ in range(steps)]
        found.append({"bytes": (_sent() - sent) / steps, "seconds": min(seconds)})
    _shape(None)
    engine.destroy()
    return found


def main(quantity: str, out: str, *cases: str) -> int:
    """Measure each case (a JSON list of config arguments); rank 0 writes a JSON list of results."""
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    results: list[Any] = []
    with joined(timeout_s=300, always_group=True) as ranks:
        for case in cases:
            config = load(json.loads(case), check=False)
            if quantity in ("traffic", "bytes"):
                results.append(traffic(config, RATES if quantity == "traffic" else [None]))
            elif ranks.device.type == "cuda":
                results.append(gpu_peak_bytes(config, ranks.device))
            else:
                results.append(peak_bytes(config))
        if ranks.is_first:
            Path(out).write_text(json.dumps(results))
        dist.barrier()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    run_and_exit("measure", lambda: main(*sys.argv[1:]))
