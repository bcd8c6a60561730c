"""The output of ``showo-dist plan``: tables, what limits a run, and which key to change."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from showo_dist.config import TrainConfig, active_flows
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, StepProfile, fake_ranks
from showo_dist.plan.shapes import PARTS
from showo_dist.plan.study import ZERO_STAGES, Prediction, Setting, Study
from showo_dist.plan.timing import Cluster, Gpu, gpu
from showo_dist.sequences import TOKEN_MULTIPLE, PackedBatch
from showo_dist.training.rows import of_engine

# The rest of the memory is for the CUDA context, NCCL's buffers and the allocator's fragmentation.
USABLE_MEMORY = 0.92
_MUCH = 0.2  # fraction of a step above which the network or the encoders are reported as the limit
GB = 1e9


def hardware_of(options: argparse.Namespace) -> tuple[Gpu, Cluster]:
    """GPU and cluster that the command line asks for."""
    row = gpu(options.gpu)
    if options.link_gbit is not None:
        row = replace(row, host_rate=options.link_gbit * 1e9 / 8)
    return row, Cluster.of(row, options.hosts, options.gpus_per_host)


def show_plan(config: TrainConfig, options: argparse.Namespace, console: Console) -> int:
    """Print all tables and the advice; return 1 if the config's own setting does not fit, else 0."""
    row, cluster = hardware_of(options)
    study = Study(config, row, cluster, options.text_tokens, options.encoded)
    scales = sorted({1, *options.scales}) if config.training.tokens_per_step is None else [1]
    count = len(ZERO_STAGES) * 2 * len(scales)
    found = list(
        track(study.predictions(scales), "settings", total=count, console=console, transient=True)
    )
    console.print(_heading(study, options))
    console.print(_memory_table(found, row))
    console.print(_time_table(found, row, config.training.max_train_steps))
    own = _own(found, config)
    for line in advice(own, found, row):
        console.print(line, highlight=False)
    console.print(_data_line(own, config, cluster), highlight=False)
    return 0 if fits(own, row) else 1


def _own(found: Sequence[Prediction], config: TrainConfig) -> Prediction:
    setting = Setting(config.distributed.zero_stage, config.model.gradient_checkpointing, 1)
    return next(prediction for prediction in found if prediction.setting == setting)


def _heading(study: Study, options: argparse.Namespace) -> str:
    text = "as long as allowed" if options.text_tokens is None else f"{options.text_tokens} tokens"
    return (
        f"{study.parameters:,} parameters; {options.hosts} hosts × {options.gpus_per_host} "
        f"{options.gpu}; texts {text}; {study.samples.micro_batch(TOKEN_MULTIPLE).tokens:,} tokens "
        "per rank and micro-step"
    )


def _name(setting: Setting) -> tuple[str, str, str]:
    return str(setting.zero_stage), "yes" if setting.checkpointing else "no", f"× {setting.scale}"


def _memory_table(found: Sequence[Prediction], row: Gpu) -> Table:
    table = Table(title=f"GB per rank at the peak of a step ({row.memory / GB:.0f} GB there)")
    for column in ("ZeRO", "checkpointing", "batch", *PARTS, "peak", "fits"):
        table.add_column(column, justify="right")
    for prediction in found:
        profile = prediction.profile
        parts = [f"{profile.at_peak[part] / GB:.2f}" for part in PARTS]
        verdict = "yes" if fits(prediction, row) else "no"
        table.add_row(*_name(prediction.setting), *parts, f"{profile.peak / GB:.2f}", verdict)
    return table


def _time_table(found: Sequence[Prediction], row: Gpu, steps: int) -> Table:
    table = Table(title=f"one optimizer step; days for {steps:,}")
    columns = ("GB sent", "compute ms", "network ms", "exposed ms", "step ms", "MFU", "tokens/s")
    for column in ("ZeRO", "checkpointing", "batch", *columns, "days"):
        table.add_column(column, justify="right")
    for prediction in found:
        time = prediction.time
        seconds = (time.compute_s, time.communication_s, time.exposed_s, time.total_s)
        table.add_row(
            *_name(prediction.setting),
            f"{prediction.sent / GB:.2f}",
            *(f"{1000 * value:.1f}" for value in seconds),
            f"{prediction.mfu:.1%}",
            f"{prediction.tokens / time.total_s:,.0f}",
            f"{prediction.days(steps):.2f}",
        )
    return table


def _data_line(own: Prediction, config: TrainConfig, cluster: Cluster) -> str:
    micro_steps = config.training.gradient_accumulation_steps
    samples = sum(flow.batch_size for flow in active_flows(config).values()) * micro_steps
    rate = samples / own.time.total_s
    workers = config.dataset.params.num_workers
    each = f", {rate / workers:.0f} per worker" if workers else " in the training process itself"
    return f"data: {rate * cluster.per_host:,.0f} samples/s per host have to be read{each}"


def show_dry_run(config: TrainConfig, options: argparse.Namespace, console: Console) -> int:
    """Build every rank's engine in turn, in this process; return 1 if a rank does not fit, else 0."""
    row, cluster = hardware_of(options)
    samples = Study(config, row, cluster, options.text_tokens).samples
    batch, config = samples.micro_batch(TOKEN_MULTIPLE), of_engine(config, samples.micro_steps())
    ranks = track(range(cluster.ranks), "ranks", console=console, transient=True)
    built = [_one_rank(config, rank, cluster.ranks, None if rank else batch) for rank in ranks]
    held = [parts for parts, _ in built]
    first = built[0][1]
    assert first is not None
    # Ranks differ in what they hold; a step adds the same to each, so that one step is enough.
    passing = first.peak - sum(held[0].values())
    console.print(_rank_table(held, passing, cluster))
    most = max(sum(parts.values()) for parts in held) + passing
    worst = max(range(len(held)), key=lambda rank: sum(held[rank].values()))
    good = most <= USABLE_MEMORY * row.memory
    verdict = "fits" if good else "does not fit"
    console.print(
        f"{cluster.ranks} ranks built; the fullest, rank {worst}, peaks at {most / GB:.2f} GB of "
        f"{row.memory / GB:.0f} GB: {verdict}"
    )
    return 0 if good else 1


def show_recomputation(config: TrainConfig, options: argparse.Namespace, console: Console) -> int:
    """Print one line if the config's own setting recomputes activations and fits without; return 0."""
    if config.model.gradient_checkpointing:
        samples = AssumedSamples(config, options.text_tokens)
        batch, ranks = samples.micro_batch(TOKEN_MULTIPLE), options.hosts * options.gpus_per_host
        peaks = []
        for checkpointing in (True, False):
            setting = Setting(config.distributed.zero_stage, checkpointing, 1)
            changed = of_engine(setting.of(config), samples.micro_steps())
            _, profile = _one_rank(changed, 0, ranks, batch)
            assert profile is not None
            peaks.append(profile.peak)
        if peaks[1] <= USABLE_MEMORY * options.recomputation * GB:
            line = not_needed(peaks[0], peaks[1], options.recomputation * GB)
            console.print(line, highlight=False, soft_wrap=True)
    return 0


def not_needed(peak: float, without: float, memory: float) -> str:
    """The line about a config that recomputes activations for nothing; all arguments in bytes."""
    return (
        f"model.gradient_checkpointing=true IS NOT NEEDED: {without / GB:.1f} GB of {memory / GB:.0f} GB "
        f"without it ({peak / GB:.1f} GB with it), and no activation is computed twice; set it to false"
    )


def _one_rank(
    config: TrainConfig, rank: int, world: int, batch: PackedBatch | None
) -> tuple[dict[str, int], StepProfile | None]:
    """Bytes of each part that a rank's new engine holds, and the profile of a step if there is a batch."""
    with fake_ranks(rank, world):
        engine = EngineOfShapes(config, torch.device("cuda"))
        return engine.held(), None if batch is None else engine.step(batch)


def _rank_table(held: Sequence[dict[str, int]], passing: int, cluster: Cluster) -> Table:
    """One line per host, because its ranks differ only by padding."""
    table = Table(title="GB that ranks hold between steps")
    for column in ("host", "ranks", *PARTS, "least", "most", "peak of a step"):
        table.add_column(column, justify="right")
    for host in range(cluster.hosts):
        first = host * cluster.per_host
        mine = held[first : first + cluster.per_host]
        sums = [sum(parts.values()) for parts in mine]
        table.add_row(
            str(host + 1),
            f"{first}–{first + len(mine) - 1}",
            *(f"{max(parts[part] for parts in mine) / GB:.3f}" for part in PARTS),
            f"{min(sums) / GB:.3f}",
            f"{max(sums) / GB:.3f}",
            f"{(max(sums) + passing) / GB:.3f}",
        )
    return table


def fits(prediction: Prediction, gpu: Gpu) -> bool:
    """Whether the predicted peak is within the usable memory."""
    return prediction.profile.peak <= USABLE_MEMORY * gpu.memory


def advice(own: Prediction, others: Sequence[Prediction], gpu: Gpu) -> list[str]:
    """Say what limits the config's own setting, and which keys make it fit or faster.

    Args:
        own: prediction of the config's own setting.
        others: predictions of all settings.
        gpu: figures of the GPU.
    """
    possible = [p for p in others if fits(p, gpu)]
    if not fits(own, gpu):
        return [_does_not_fit(own, possible, gpu)]
    lines = [_limit(own)]
    keeping = replace(own.setting, checkpointing=False)
    kept = next((p for p in possible if p.setting == keeping), None)
    if own.setting.checkpointing and kept is not None:
        lines.insert(0, not_needed(own.profile.peak, kept.profile.peak, gpu.memory))
    best = max(possible, key=lambda p: p.tokens / p.time.total_s)
    gain = best.tokens / best.time.total_s / (own.tokens / own.time.total_s) - 1
    if gain > 0.05:
        lines.append(f"{gain:.0%} more tokens per second with {describe(best)}")
    return lines


def describe(prediction: Prediction) -> str:
    """The config keys of a setting, as ``key=value``."""
    setting = prediction.setting
    keys = f"distributed.zero_stage={setting.zero_stage} "
    keys += f"model.gradient_checkpointing={str(setting.checkpointing).lower()}"
    return keys if setting.scale == 1 else f"{keys} and training.batch_size_* × {setting.scale}"


def _does_not_fit(own: Prediction, possible: Sequence[Prediction], gpu: Gpu) -> str:
    need = f"does not fit: {own.profile.peak / 1e9:.1f} GB of {gpu.memory / 1e9:.0f} GB"
    if not possible:
        return f"{need}, nor does any setting above: lower training.batch_size_* and accumulate"
    best = max(possible, key=lambda p: p.tokens / p.time.total_s)
    return f"{need}; what fits and is fastest: {describe(best)}"


def _limit(own: Prediction) -> str:
    exposed = own.time.exposed_s / own.time.total_s
    encoders = own.compute.encoders_s / own.time.total_s
    if exposed > _MUCH and exposed >= encoders:
        return (
            f"limited by the network: {exposed:.0%} of the step waits for it; raise "
            "training.gradient_accumulation_steps or training.batch_size_*, or lower distributed.zero_stage"
        )
    if encoders > _MUCH:
        return (
            f"limited by the frozen encoders: {encoders:.0%} of the step; encode the shards once, "
            "ahead of training, with showo-dist encode"
        )
    return f"limited by compute: the network adds {exposed:.0%}, the frozen encoders {encoders:.0%}"
