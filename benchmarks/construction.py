"""Build a random Llama under ZeRO-3 from safetensors shards on CPU ranks; compare memory with the plan.

    python benchmarks/construction.py [--layers 16] [--dtype bf16] [--json FILE]

The ranks read the model part by part as stage 1 does, build DeepSpeed's engine and run two steps of plain
text. Counted are live bytes of torch's allocator on each rank. A size that does not fit in free memory is
refused.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from common import report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the counting of the tests
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from showo_dist.config import TrainConfig, load
from showo_dist.models.weights.start import load_initial
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, StepProfile, fake_ranks
from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import TOKEN_MULTIPLE
from showo_dist.training.engine import sharder
from tests.checkpoints.group import on_ranks
from tests.plan.measure import count_all_threads, live_bytes, peaks_between, train_step

CPU = torch.device("cpu")
TEXT = 16000
PHASES = ("construction", "engine", "first step", "second step")
# Of a rank's process beside live tensors; with 400 MB, 0.97 billion parameters ran out of 24 GB.
OWN_BYTES = 800e6
# DeepSpeed's default buckets are for GPUs and would take most of the memory of ranks that share a host.
BUCKETS = (
    "distributed.deepspeed={zero_optimization: {reduce_bucket_size: 20000000, "
    "allgather_bucket_size: 20000000, stage3_prefetch_bucket_size: 20000000, "
    "stage3_param_persistence_threshold: 10000, stage3_max_live_parameters: 100000000, "
    "stage3_max_reuse_distance: 0, sub_group_size: 50000000}}"
)


def run_config(folder: Path, dtype: str) -> TrainConfig:
    """Stage 1 from the language model at ``folder``, on short texts; sums of gradients as in the weights."""
    keys = [
        f"model.showo.llm_model_path={folder}",
        f"model.showo.llm_vocab_size={TEXT}",
        "model.showo.codebook_size=512",
        "model.showo.num_vq_tokens=16",
        "model.vq_model.downsample=16",
        "dataset.preprocessing.resolution=64",
        "dataset.params.resolution=64",
        "dataset.preprocessing.max_seq_length=45",
        "training.batch_size_t2i=0",
        "training.batch_size_mmu=0",
        "training.batch_size_lm=1",
        f"training.mixed_precision={dtype}",
        "distributed.zero_stage=3",
        "distributed.gradient_accumulation_dtype=bf16",
        "lr_scheduler.scheduler=constant",
        BUCKETS,
    ]
    return load(keys, check=False)


def write_language_model(folder: Path, hidden: int, layers: int) -> int:
    """Write a random Llama in bf16, in shards of 200 MB; returns its number of parameters."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=TEXT,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="200MB")
    return sum(p.numel() for p in model.parameters())


def planned(config: TrainConfig, ranks: int) -> StepProfile:
    """The plan of one rank's step."""
    with fake_ranks(0, ranks):
        engine = EngineOfShapes(config, CPU)
        return engine.step(AssumedSamples(config).micro_batch(TOKEN_MULTIPLE))


def measure(_: Ranks, config: TrainConfig) -> list[tuple[float, int]]:
    """Seconds of each phase on one rank, and the largest number of live bytes in it."""
    from showo_dist.training.deepspeed_engine import initialize

    count_all_threads()
    batch = AssumedSamples(config).micro_batch(TOKEN_MULTIPLE)
    begins_ns: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        begins_ns.append(time.time_ns())
        model, _note = load_initial(config, CPU, None, sharder(config, CPU))
        begins_ns.append(time.time_ns())
        engine = initialize(model, config, CPU)
        for _step in range(2):
            begins_ns.append(time.time_ns())
            train_step(engine, batch, config.training.gradient_accumulation_steps)
        ends_ns = [*begins_ns[1:], time.time_ns()]
    seconds = [(end - begin) / 1e9 for begin, end in zip(begins_ns, ends_ns, strict=True)]
    return list(zip(seconds, peaks_between(live_bytes(measured), begins_ns), strict=True))


def free_bytes() -> int:
    """Memory that can still be taken on this machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Write the model, plan, measure, report."""
    size = write_language_model(folder, options.hidden, options.layers)
    config = run_config(folder, options.dtype)
    plan = planned(config, options.ranks)
    print(f"{size:,} parameters; plan: {plan.peak / 1e9:.3f} GB per rank", flush=True)
    if (plan.peak + OWN_BYTES) * options.ranks > free_bytes():
        raise SystemExit(f"{options.ranks} ranks of {plan.peak / 1e9:.1f} GB do not fit here")
    found = on_ranks(options.ranks, measure, config, limit_s=options.limit_s)
    rows = []
    for name, *ranks in zip(PHASES, *found, strict=True):
        own = {f"rank {rank} GB": peak / 1e9 for rank, (_, peak) in enumerate(ranks)}
        rows.append({"phase": name, **own, "s": max(seconds for seconds, _ in ranks)})
    peaks = [[peak for _, peak in rank] for rank in found]
    findings = {
        "plan, GB per rank": plan.peak / 1e9,
        "largest of all phases / plan": max(map(max, peaks)) / plan.peak,
        "second step / plan, largest": max(rank[-1] for rank in peaks) / plan.peak,
        "second step / plan, smallest": min(rank[-1] for rank in peaks) / plan.peak,
        **{f"plan, {part}, GB": held / 1e9 for part, held in plan.at_peak.items()},
    }
    report("construction", rows, findings, {"parameters": size, "dtype": options.dtype}, options)


def main() -> None:
    """Parse and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=2048, help="width, a multiple of 512")
    parser.add_argument(
        "--layers", type=int, default=16, help="0.8 billion parameters in 20 GB (%(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=4, help="processes (%(default)s)")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--limit-s", type=float, default=1200.0, help="end the ranks after this")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    options.device = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
