"""``showo-dist plan --advise``: the fastest setting that fits in memory, with the same global batch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import accumulate, repeat, takewhile
from operator import attrgetter

from rich.console import Console
from rich.table import Table

from showo_dist.config import TrainConfig
from showo_dist.plan.batch import PROMPT_TOKENS, SYSTEM_TOKENS, AssumedSamples
from showo_dist.plan.report import GB, USABLE_MEMORY, fits, hardware_of
from showo_dist.plan.study import ZERO_STAGES, Prediction, Setting, Study
from showo_dist.training.rows import cut, longest_samples, window_of

# Recompute the first of so many blocks, from the least memory on: if all are too few, so are some.
_EVERY = (1, 2, 4)
# Keys of a config that a setting changes.
_KEYS = (
    "distributed.zero_stage",
    "model.gradient_checkpointing",
    "model.gradient_checkpointing_every",
    "training.tokens_per_step",
)


@dataclass
class Advice:
    """The predictions of a search.

    Attributes:
        own: of the config as it is.
        tried: all settings that were predicted.
    """

    own: Prediction
    tried: list[Prediction] = field(default_factory=list)

    def best(self, study: Study) -> Prediction | None:
        """The fastest that fits; the config's own where nothing is faster."""
        fitting = [p for p in (self.own, *self.tried) if fits(p, study.gpu)]
        return min(fitting, key=lambda p: p.time.total_s, default=None)


def own_setting(config: TrainConfig) -> Setting:
    """The setting of the config as it is."""
    return Setting(config.distributed.zero_stage, config.model.gradient_checkpointing, 1)


def budgets(config: TrainConfig) -> list[int | None]:
    """Values of ``training.tokens_per_step`` to try, fewest micro-steps first; None: as in the config.

    A budget keeps the samples of an optimizer step, whatever the number of its micro-steps. A mean per
    micro-step (``training.loss_normalization: rank``) allows no other micro-steps than the config's.
    """
    if config.training.loss_normalization == "rank":
        return [None]
    lengths = window_of(config, longest_samples(config, PROMPT_TOKENS, SYSTEM_TOKENS))
    doubled = takewhile(lambda n: n <= len(lengths), accumulate(repeat(2), int.__mul__, initial=1))
    by_rows: dict[int, int | None] = {}
    for count in doubled:
        rows = [sum(lengths[stretch]) for stretch in cut(lengths, count)]
        by_rows[sum(map(bool, rows))] = max(rows)
    by_rows[AssumedSamples(config).micro_steps()] = None
    return [by_rows[count] for count in sorted(by_rows)]


def search(study: Study) -> Advice:
    """Try settings until no other one can be faster.

    At one ZeRO stage, more micro-steps and recomputation only add time. So a stage is done with its fewest
    micro-steps that fit without recomputation, or when compute alone takes longer than the best that fits.
    """
    found = Advice(study.one(own_setting(study.config)))
    open_stages = set(ZERO_STAGES)
    for tokens in budgets(study.config):
        for stage in sorted(open_stages):
            plain = Setting(stage, False, 1, None, tokens)
            if not _may_win(plain, found, study) or not _fits_somehow(plain, found, study):
                open_stages.remove(stage)
    return found


def _may_win(setting: Setting, found: Advice, study: Study) -> bool:
    """Whether a setting's compute alone is faster than the best that fits."""
    best = found.best(study)
    return best is None or study.compute(setting).busy_s < best.time.total_s


def _fits_somehow(plain: Setting, found: Advice, study: Study) -> bool:
    """Try a stage with some number of micro-steps; returns whether more micro-steps are worth a try."""
    first = study.one(plain)
    found.tried.append(first)
    if fits(first, study.gpu):
        return False
    if sum(first.profile.static.values()) > USABLE_MEMORY * study.gpu.memory:
        return False  # more micro-steps do not shrink the state
    for every in _EVERY:
        setting = replace(plain, checkpointing=True, every=every)
        if not _may_win(setting, found, study):
            continue  # recomputing fewer blocks may still win
        found.tried.append(study.one(setting))
        if not fits(found.tried[-1], study.gpu):
            break
    return True


def keys(setting: Setting, config: TrainConfig) -> list[str]:
    """The keys that make a setting of a config, as ``key=value``; none where nothing changes."""
    wanted = setting.of(config)
    pairs = ((key, attrgetter(key)(wanted), attrgetter(key)(config)) for key in _KEYS)
    return [f"{key}={str(new).lower()}" for key, new, old in pairs if new != old]


def limit(best: Prediction, found: Advice, study: Study) -> str:
    """One line on where the time of a step goes, and on the memory that a faster setting needs."""
    total = best.time.total_s
    compute = best.compute
    shares = {
        "forward and backward": (compute.forward_s + compute.backward_s) / total,
        "frozen encoders": compute.encoders_s / total,
        "links": best.time.exposed_s / total,
        "update": compute.optimizer_s / total,
    }
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    line = f"limits: {parts}; launch floor {compute.launch_s / total:.0%} of the step"
    faster = [p for p in found.tried if p.time.total_s < total]
    if not faster:
        return line
    lost = min(faster, key=lambda p: p.time.total_s)
    return (
        f"{line}; memory: {1000 * lost.time.total_s:.0f} ms would need {lost.profile.peak / GB:.1f} GB of "
        f"{study.gpu.memory / GB:.0f} GB ({_name(lost.setting, study)})"
    )


def _name(setting: Setting, study: Study) -> str:
    config = setting.of(study.config)
    every = config.model.gradient_checkpointing_every
    blocks = "all blocks" if every == 1 else f"1 of {every} blocks"
    recomputed = f"recompute {blocks}" if setting.checkpointing else "no recomputation"
    micro_steps = study.samples_of(setting).micro_steps()
    return f"ZeRO-{setting.zero_stage}, {recomputed}, micro-steps: {micro_steps}"


def _table(found: Advice, best: Prediction, study: Study, title: str) -> Table:
    table = Table(title=title)
    for column in ("", "setting", "ms per step", "GB", "MFU", "fits"):
        table.add_column(column)
    for name, one in (("as configured", found.own), ("advised", best)):
        table.add_row(
            name,
            _name(one.setting, study),
            f"{1000 * one.time.total_s:.1f}",
            f"{one.profile.peak / GB:.1f}",
            f"{one.mfu:.1%}",
            "yes" if fits(one, study.gpu) else "no",
        )
    return table


def _lines(found: Advice, best: Prediction, study: Study) -> Iterator[str]:
    changed = keys(best.setting, study.config)
    yield from changed or ["nothing to set: no setting that fits is faster"]
    yield limit(best, found, study)


def _nothing_fits(found: Advice, study: Study) -> str:
    least = min((found.own, *found.tried), key=lambda p: p.profile.peak)
    return (
        f"nothing fits: the least is {least.profile.peak / GB:.1f} GB of {study.gpu.memory / GB:.0f} GB "
        f"({_name(least.setting, study)}); use more GPUs, or lower dataset.preprocessing.max_seq_length"
    )


def show(config: TrainConfig, options: argparse.Namespace, console: Console) -> int:
    """Print the advice for every GPU of ``--gpu``; return 1 if for one of them nothing fits, else 0."""
    study: Study | None = None
    missing = False
    for name in options.gpu.split(","):
        chosen = copy(options)
        chosen.gpu = name
        row, cluster = hardware_of(chosen)
        if study is None:
            study = Study(config, row, cluster, options.text_tokens, options.encoded)
        here = study.on(row, cluster)
        found = search(here)
        best = found.best(here)
        missing |= best is None
        if best is None:
            console.print(_nothing_fits(found, here), highlight=False, soft_wrap=True)
            continue
        title = f"{options.hosts} hosts × {options.gpus_per_host} {name}"
        console.print(_table(found, best, here, title))
        for line in _lines(found, best, here):
            console.print(line, highlight=False, soft_wrap=True)
    return 1 if missing else 0
