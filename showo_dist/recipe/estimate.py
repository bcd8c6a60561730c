"""``showo-dist reproduce --dry-run``: all commands, and predicted hours and disk space.

Nothing is measured: training is the prediction of ``showo-dist plan``, and a round of generation is assumed
to cost as much per token as the forward pass of that prediction.
"""

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from math import ceil
from pathlib import Path

from braceexpand import braceexpand

from showo_dist.config import TrainConfig
from showo_dist.evaluation.cli import IMAGES
from showo_dist.plan.advise import own_setting
from showo_dist.plan.study import Study
from showo_dist.plan.timing import Cluster, Gpu, gpu
from showo_dist.recipe.reproduce import Kit
from showo_dist.recipe.stages import Stage

# Prompts of the published sets, where the files are not there to be counted: GenEval and DPG-Bench
# (docs/specification.md, section 10), WISE (arXiv 2503.07265).
PUBLISHED_PROMPTS = {"geneval": 553, "dpg": 1065, "wise": 1000}
PROMPT_TOKENS = 32  # of a generation's text, assumed
HOST_RANKS = 8
# fp32 weights and AdamW's two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12
GB = 1e9


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one step.

    Attributes:
        name: of the step.
        hours: elapsed; None: not predicted.
        bytes: on disk.
        basis: how the figures come about.
    """

    name: str
    hours: float | None
    bytes: float
    basis: str


def show_plan(kit: Kit, out: Path, gpu_name: str, missing: list[str]) -> int:
    """Print commands, hours and disk space, and what is missing.

    Raises:
        ValueError: the recipe or the GPU is wrong.
    """
    warnings.simplefilter("ignore", FutureWarning)  # from DeepSpeed
    print(f"cd {out}")
    for step in kit.steps():
        stage = step if isinstance(step, Stage) else step.stage
        print(f"== {stage.name}", *stage.lines, sep="\n")
    if kit.miniature:
        print(
            "A miniature takes some minutes on two cores and 20 MB; hours of GPUs are not predicted."
        )
        return 0
    costs = list(predicted(kit, gpu_name))
    for cost in costs:
        time = "time not predicted" if cost.hours is None else f"{cost.hours:.1f} h"
        print(f"{cost.name}: {time}, {cost.bytes / GB:.1f} GB ({cost.basis})")
    hours = sum(cost.hours or 0 for cost in costs)
    parent = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    needed = sum(cost.bytes for cost in costs)
    print(f"all: {hours:.1f} h on {gpu_name}, {needed / GB:.1f} GB; free there: {free / GB:.1f} GB")
    print(*missing, sep="\n", end="\n" if missing else "")
    return 0


def predicted(kit: Kit, gpu_name: str) -> Iterator[Cost]:
    """The cost of conversions, trainings and benchmarks.

    Raises:
        ValueError: the GPU is unknown.
    """
    for flow, words in kit.config.convert.items():
        size = sum(map(size_of, words))
        yield Cost(f"convert {flow}", None, size, "as many bytes as its inputs have here")
    trained = kit.trainings()
    studies = [Study(ready.config, *_hardware(gpu_name, kit.config.ranks)) for ready in trained]
    for ready, study in zip(trained, studies, strict=True):
        yield _training(ready.stage.name, ready.config, study, kit.config.ranks)
    ranks = kit.config.generation_ranks or kit.config.ranks
    for name in kit.config.benchmarks:
        yield _generation(kit, name, trained[-1].config, studies[-1], ranks)


def _hardware(name: str, ranks: int) -> tuple[Gpu, Cluster]:
    row = gpu(name)
    hosts = -(-ranks // HOST_RANKS)
    return row, Cluster.of(row, hosts, -(-ranks // hosts))


def _training(name: str, config: TrainConfig, study: Study, ranks: int) -> Cost:
    steps = config.training.max_train_steps
    prediction = study.one(own_setting(config))
    experiment = config.experiment
    written = ceil(steps / experiment.save_every) if experiment.save_every else 1
    kept = min(experiment.keep_last + 1, written) if experiment.keep_last else written
    if experiment.keep_every:
        kept = min(written, kept + steps // experiment.keep_every)
    averages = 4 * (config.training.ema.decay is not None)
    size = kept * (CHECKPOINT_BYTES_PER_PARAMETER + averages) * study.parameters
    basis = f"showo-dist plan: {steps:,} steps of {prediction.time.total_s:.2f} s on {ranks} GPUs"
    return Cost(name, 24 * prediction.days(steps), size, f"{basis}; {kept} checkpoints")


def _generation(kit: Kit, name: str, config: TrainConfig, study: Study, ranks: int) -> Cost:
    benchmark, asked = IMAGES[name], getattr(kit.config, name)
    preset = benchmark.presets[kit.config.preset]
    prompts = PUBLISHED_PROMPTS[name]
    if asked.prompts is not None and Path(asked.prompts).exists():
        prompts = len(benchmark.read(Path(asked.prompts)))
    images = min(prompts, asked.limit or prompts) * (asked.samples or preset.samples)
    images *= len(kit.checkpoints())
    # With guidance, every round computes the prompt and an empty one.
    tokens = 2 * preset.steps * (PROMPT_TOKENS + config.model.showo.num_vq_tokens)
    batch = study.samples.micro_batch(1)
    per_token = study.passes(own_setting(config)).forward_s / batch.real_tokens
    hours = images * tokens * per_token / ranks / 3600
    size = images * 3 * config.dataset.preprocessing.resolution**2
    basis = f"{images:,} images, {preset.steps} rounds, assumed {1e6 * per_token:.1f} µs per token"
    return Cost(name, hours, size, f"{basis} on {ranks} GPUs; PNG as large as its pixels")


def size_of(word: str) -> int:
    """Bytes of the files that a path, pattern or wildcard names, folders with all that is in them."""
    paths = [Path(name) for one in braceexpand(word) for name in glob(one)]
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)
