"""Losses and seconds per step with compiled blocks and without: the mini model on random tokens.

python benchmarks/compiled.py --engine zero-2 --dtype bf16 --checkpointing --steps 200
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from showo_dist.config import TrainConfig
from showo_dist.config.loader import load_file
from showo_dist.models.showo import build_showo
from showo_dist.sequences import FLOWS, PackedBatch, Sequence, Vocabulary, builders, pack
from showo_dist.sequences.masking import MaskingOptions, mask_codes, mask_schedule, sample_rng
from showo_dist.training.engine import build_engine
from showo_dist.training.step import Stepper
from showo_kernels import select_backend

MODEL = "configs/mini/pretrain.yaml"
FLOW_SIZES = {"t2i": 6, "mmu": 3, "lm": 1, "recon": 2}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="torch", help="torch or zero-STAGE")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="more config keys"
    )
    parser.add_argument("--sides", nargs="*", default=["eager", "compiled"])
    parser.add_argument("--json", help="write all losses to this file")
    return parser.parse_args()


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


def batches(vocabulary: Vocabulary, steps: int) -> Iterator[PackedBatch]:
    """Micro-batches of all flows, always the same."""
    step = 0
    while True:
        sequences = [
            sequence(flow, step * count + index, vocabulary)
            for flow, count in FLOW_SIZES.items()
            for index in range(count)
        ]
        yield pack(sequences, pad_id=vocabulary.pad, multiple_of=128, steps=steps)
        step += 1


def curve(arguments: argparse.Namespace, compiled: bool) -> tuple[list[float], list[float]]:
    """Losses and seconds of every step."""
    torch.manual_seed(0)
    config = settings(arguments, compiled)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    backend, _ = select_backend(arguments.attention, device, dtype)
    showo = config.model.showo
    engine = build_engine(build_showo(showo, backend), config, device)
    stepper = Stepper(engine, dict.fromkeys(FLOWS, 1.0), "global", device)
    vocabulary = Vocabulary(showo.llm_vocab_size, showo.codebook_size, bos=0)
    losses, seconds = [], []
    for batch, _ in zip(batches(vocabulary, 8), range(arguments.steps), strict=False):
        start = time.perf_counter()
        losses.append(stepper([batch.to(device)]).total)
        seconds.append(time.perf_counter() - start)
    return losses, seconds


def settings(arguments: argparse.Namespace, compiled: bool) -> TrainConfig:
    config = load_file(MODEL, TrainConfig, check=False)
    config.training.mixed_precision = arguments.dtype
    config.lr_scheduler.params.warmup_steps = 20
    config.model.gradient_checkpointing = arguments.checkpointing
    if compiled:
        config.model.compile = True
    if arguments.engine == "torch":
        config.distributed.engine = "torch"
    else:
        config.distributed.engine = "deepspeed"
        config.distributed.zero_stage = int(arguments.engine.removeprefix("zero-"))
    return config


def main() -> None:
    arguments = parse()
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1"
    )
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    curves = {side: curve(arguments, side == "compiled") for side in arguments.sides}
    for side, (losses, seconds) in curves.items():
        print(
            f"{side}: loss {losses[0]:.6f} -> {losses[-1]:.6f}; "
            f"median {statistics.median(seconds):.3f} s per step, first {seconds[0]:.1f} s"
        )
    if len(curves) == 2:
        (one, _), (other, _) = curves.values()
        worst = max(abs(x - y) / abs(x) for x, y in zip(one, other, strict=True))
        print(f"largest relative difference of a loss over {arguments.steps} steps: {worst:.1e}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({side: losses for side, (losses, _) in curves.items()}, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
