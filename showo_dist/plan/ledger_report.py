"""The output of ``showo-dist plan --ledger``: a step, part by part, on a GPU of the table."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from showo_dist.config import TrainConfig
from showo_dist.plan.ledger import PARTS, Entry
from showo_dist.plan.ledger_step import StepLedger, ledger_of_step
from showo_dist.plan.roofline import Rates
from showo_dist.plan.timing import MPT_1B_MFU, gpu


@dataclass(frozen=True)
class Row:
    """Sums of one part over the step, per token but for the kernels.

    Attributes:
        kernels: launches of the whole step.
        flops, read, written: per token; bytes.
        forward_us, again_us, backward_us: per token; ``again`` is recomputation. What is neither of these
            (encoders, update) is in ``forward_us``.
    """

    part: str
    kernels: int
    flops: float
    read: float
    written: float
    forward_us: float
    again_us: float
    backward_us: float

    @property
    def total_us(self) -> float:
        return self.forward_us + self.again_us + self.backward_us


def rows_of(step: StepLedger, rates: Rates) -> Iterator[Row]:
    """One row for every part that has operations."""
    by_part: dict[str, list[Entry]] = {}
    for entry in step.ledger.entries:
        by_part.setdefault(entry.part, []).append(entry)
    for part in PARTS:
        if part in by_part:
            yield _row(part, by_part[part], rates, step.tokens)


def _row(part: str, entries: list[Entry], rates: Rates, tokens: int) -> Row:
    microseconds = dict.fromkeys(("forward", "recompute", "backward"), 0.0)
    for entry in entries:
        phase = entry.phase if entry.phase in ("recompute", "backward") else "forward"
        microseconds[phase] += 1e6 * rates.seconds(entry.cost) / tokens
    costs = [entry.cost for entry in entries]
    return Row(
        part,
        sum(cost.kernels for cost in costs),
        sum(cost.flops for cost in costs) / tokens,
        sum(cost.read for cost in costs) / tokens,
        sum(cost.written for cost in costs) / tokens,
        microseconds["forward"],
        microseconds["recompute"],
        microseconds["backward"],
    )


def show_ledger(config: TrainConfig, options: argparse.Namespace, console: Console) -> int:
    """Print the ledger of the config's own setting; return 0."""
    ranks = options.hosts * options.gpus_per_host
    step = ledger_of_step(config, options.text_tokens, ranks, options.encoded)
    rates, peak = gpu(options.gpu).rates, gpu(options.gpu).flops
    rows = list(rows_of(step, rates))
    waits_us = 1e6 * sum(map(rates.transfer_s, step.ledger.transfers)) / step.tokens
    total_us = sum(row.total_us for row in rows) + waits_us
    console.print(_table(rows, waits_us, total_us, options.gpu))
    console.print(_transfers(step))
    useful = step.useful_flops / step.tokens
    console.print(
        f"{step.tokens:,} tokens in {step.micro_steps} micro-steps of {step.layers} layers: "
        f"{total_us:.2f} µs per token, {useful / (total_us * 1e-6) / peak:.1%} MFU "
        f"(MPT-1B on 8 H100: {MPT_1B_MFU:.1%}), "
        f"{total_us * 1e-6 * step.tokens:.3f} s without collectives",
        highlight=False,
    )
    calls = Counter(step.ledger.collectives)
    console.print("collectives: " + ", ".join(f"{name} {n}" for name, n in calls.items()))
    console.print(f"rates: {rates.source}", highlight=False)
    return 0


def _table(rows: list[Row], waits_us: float, total_us: float, name: str) -> Table:
    table = Table(title=f"one optimizer step of one {name}: per token, kernels of the step")
    columns = (
        "MFLOP",
        "kB read",
        "kB written",
        "forward µs",
        "again µs",
        "backward µs",
        "µs",
        "share",
    )
    table.add_column("part")
    for column in ("kernels", *columns):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row.flops / 1e6, row.read / 1e3, row.written / 1e3)
        times = (row.forward_us, row.again_us, row.backward_us, row.total_us)
        table.add_row(
            row.part,
            f"{row.kernels:,}",
            *(f"{number:,.1f}" for number in numbers),
            *(f"{time:.2f}" for time in times),
            f"{row.total_us / total_us:.0%}",
        )
    table.add_row("waits and copies", *[""] * 7, f"{waits_us:.2f}", f"{waits_us / total_us:.0%}")
    sums = [sum(getattr(row, key) for row in rows) for key in ("flops", "read", "written")]
    scaled = (f"{value / scale:,.1f}" for value, scale in zip(sums, (1e6, 1e3, 1e3), strict=True))
    phases = [sum(getattr(r, f"{k}_us") for r in rows) for k in ("forward", "again", "backward")]
    kernels = f"{sum(row.kernels for row in rows):,}"
    table.add_row("all", kernels, *scaled, *(f"{p:.2f}" for p in phases), f"{total_us:.2f}", "100%")
    return table


def _transfers(step: StepLedger) -> Table:
    """Copies between host and device and waits, by the line that makes them."""
    table = Table(title="copies between host and device, and values that the host waits for")
    table.add_column("what")
    for column in ("memory", "host waits", "part", "line"):
        table.add_column(column)
    for column in ("times", "kB"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, ...], list[int]] = {}
    for t in step.ledger.transfers:
        memory = "" if t.kind != "to device" else "pinned" if t.pinned else "pageable"
        waits = "no" if not t.blocking else "another thread" if t.ahead else "yes"
        key = (t.kind, memory, waits, t.part, t.site)
        groups.setdefault(key, []).append(t.bytes)
    for cells, sizes in sorted(groups.items()):
        table.add_row(*cells, str(len(sizes)), f"{sum(sizes) / 1e3:,.1f}")
    return table
