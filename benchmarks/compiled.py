"""Losses and seconds per step with compiled blocks and without: the mini model on random tokens.

    python benchmarks/compiled.py [--engines torch zero-2] [--dtypes fp32] [--recompute no]

Runs every engine, dtype and recomputation asked for, twice: eager and with ``model.compile=true``, on the
same batches and initial weights. Reports the largest relative difference of a step's loss, graph breaks, and
how many graphs were compiled for how many row capacities. ``--noise`` adds the difference that rounding
makes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import report

from showo_dist.config import TrainConfig, load
from showo_dist.models.showo import build_showo
from showo_dist.sequences import FLOWS, PackedBatch, Sequence, Vocabulary, builders, pack
from showo_dist.sequences.masking import MaskingOptions, mask_codes, mask_schedule, sample_rng
from showo_dist.training.engine import build_engine
from showo_dist.training.step import Stepper
from showo_kernels import select_backend

MODEL = "configs/mini/pretrain.yaml"
FLOW_SIZES = {"t2i": 1, "mmu": 1, "lm": 1, "recon": 1}  # of every third step
ENGINES = ("torch", "zero-0", "zero-1", "zero-2", "zero-3")
# By default ZeRO-3 would keep most of a small model's weights gathered.
GATHERED = "distributed.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """One engine, dtype and recomputation; ``more`` are config keys."""

    engine: str
    dtype: str
    recompute: bool
    more: tuple[str, ...] = ()

    def config(self, compiled: bool) -> TrainConfig:
        stage = self.engine.removeprefix("zero-")
        keys = [
            f"config={MODEL}",
            "optimizer.name=adamw",
            f"training.mixed_precision={self.dtype}",
            "lr_scheduler.params.warmup_steps=20",
            f"model.gradient_checkpointing={str(self.recompute).lower()}",
            f"model.compile={str(compiled).lower()}",
            f"distributed.engine={'torch' if stage == 'torch' else 'deepspeed'}",
            f"distributed.zero_stage={0 if stage == 'torch' else stage}",
        ]
        keys += [GATHERED] if stage == "3" else []
        return load([*keys, *self.more], TrainConfig, check=False)


@dataclass
class Run:
    """Losses and seconds of each step, and what the compiler counted."""

    losses: list[float]
    seconds: list[float]
    capacities: set[int]
    graphs: int = 0
    breaks: int = 0


def sequence(flow: str, position: int, vocabulary: Vocabulary) -> Sequence:
    """Sample ``position`` of a flow: random tokens, other lengths in every sample."""
    rng = sample_rng(0, flow, position)
    text = rng.integers(1, vocabulary.text, size=rng.integers(4, 40)).tolist()
    codes = torch.from_numpy(rng.integers(vocabulary.codebook, size=64) // 8)
    masked = mask_codes(codes, vocabulary.codebook, MaskingOptions(mask_schedule("cosine")), rng)
    if flow == "t2i":
        return builders.t2i(text, masked, 48, vocabulary)
    if flow == "lm":
        return builders.lm(text, 48, vocabulary)
    if flow == "mmu":
        return builders.mmu_caption(text, codes, 48, vocabulary)
    return builders.recon_vq(text, codes, masked, vocabulary)


def batches(vocabulary: Vocabulary, backwards: bool = False) -> Iterator[PackedBatch]:
    """Micro-batches of all flows, the same at every call, of several capacities.

    Packed backwards they have the same losses, but for rounding.
    """
    for step in count():
        sequences = [
            sequence(flow, 8 * step + index, vocabulary)
            for flow, size in FLOW_SIZES.items()
            for index in range(size + step % 3)
        ][:: -1 if backwards else 1]
        yield pack(sequences, pad_id=vocabulary.pad, multiple_of=128, steps=8)


def run(setting: Setting, side: str, attention: str, steps: int, device: torch.device) -> Run:
    """Train for some steps from the same weights; ``side`` is eager, compiled or backwards."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    config = setting.config(side == "compiled")
    backend, _ = select_backend(attention, device, DTYPES[setting.dtype])
    showo = config.model.showo
    engine = build_engine(build_showo(showo, backend), config, device)
    stepper = Stepper(engine, dict.fromkeys(FLOWS, 1.0), "global", device)
    vocabulary = Vocabulary(showo.llm_vocab_size, showo.codebook_size, bos=0)
    done = Run([], [], set())
    for batch, _ in zip(batches(vocabulary, side == "backwards"), range(steps), strict=False):
        start = time.perf_counter()
        done.losses.append(stepper([batch.to(device)]).total)
        done.seconds.append(time.perf_counter() - start)
        done.capacities.add(batch.tokens)
    done.graphs = counters["stats"]["unique_graphs"]
    done.breaks = sum(counters["graph_break"].values())
    return done


def difference(one: Run, other: Run) -> float:
    """The largest relative difference of a step's loss."""
    pairs = zip(one.losses, other.losses, strict=True)
    return max(abs(x - y) / abs(x) for x, y in pairs)


def compare(
    setting: Setting, attention: str, steps: int, device: torch.device, noise: bool
) -> dict[str, Any]:
    """The runs of a setting as a row of the table."""
    sides = ("eager", "compiled", "backwards")[: 3 if noise else 2]
    eager, compiled, *rest = (run(setting, side, attention, steps, device) for side in sides)
    return {
        "engine": setting.engine,
        "dtype": setting.dtype,
        "recompute": "yes" if setting.recompute else "no",
        "attention": select_backend(attention, device, DTYPES[setting.dtype])[0],
        "loss first": eager.losses[0],
        "loss last": eager.losses[-1],
        "largest difference": difference(eager, compiled),
        "noise": difference(eager, rest[0]) if rest else None,
        "capacities": len(compiled.capacities),
        "graphs": compiled.graphs,
        "breaks": compiled.breaks,
        "eager s": statistics.median(eager.seconds),
        "compiled s": statistics.median(compiled.seconds),
    }


def main() -> None:
    """Run, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", nargs="*", default=ENGINES, help="torch, zero-STAGE")
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--recompute", nargs="*", default=["no", "yes"], choices=["no", "yes"])
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--noise", action="store_true", help="also run eager with every batch packed backwards"
    )
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config keys")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.device = device.type
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    table = []
    for engine, dtype, recompute in product(options.engines, options.dtypes, options.recompute):
        setting = Setting(engine, dtype, recompute == "yes", tuple(options.set))
        row = compare(setting, options.attention, options.steps, device, options.noise)
        table.append(row)
        print(table[-1], flush=True)
    worst = {
        f"largest difference in {d}": max(r["largest difference"] for r in table if r["dtype"] == d)
        for d in options.dtypes
    }
    report("compiled", table, worst, {"steps": options.steps}, options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
