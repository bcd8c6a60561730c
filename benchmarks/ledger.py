"""Compare the seconds of a step that the ledger predicts with measured ones, on this machine's own rates.

    python benchmarks/ledger.py [--json FILE] [--repeats N]

Measures how fast this machine multiplies matrices of several shapes, goes over memory, computes attention
and calls an operation; then predicts the step of twelve settings from shapes alone, and measures them. One
thread and CPU time, best of N, because other programs may run.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import report
from torch import nn
from transformers import PhiConfig

from showo_dist.models.showo import ShowO
from showo_dist.plan.batch import on_meta
from showo_dist.plan.costs import extent
from showo_dist.plan.engine_step import as_if
from showo_dist.plan.ledger import Entry, Ledger
from showo_dist.plan.ledger_step import fuse, parts_of
from showo_dist.plan.roofline import Curve, Rates
from showo_dist.plan.shapes import Shapes
from showo_dist.sequences import FLOWS, PackedBatch, Sequence, pack
from showo_kernels import Span, TanhGELU, attend, build_plan

CPU = torch.device("cpu")
SIDES = (32, 64, 128, 256, 512, 1024, 2048)
SIZES = tuple(4**k << 10 for k in range(2, 9))  # bytes of a tensor, 16 KB to 64 MB
LENGTH = 320


@dataclass(frozen=True)
class Setting:
    """A step to predict and to measure: ``samples`` of 320 tokens, of which 256 are labelled."""

    width: int
    layers: int
    samples: int
    attention: str = "native"
    compiled: bool = False
    head: bool = True
    bf16: bool = False
    vocabulary: int = 8192

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32


SETTINGS = (
    Setting(256, 4, 4),
    Setting(512, 2, 2),
    Setting(512, 2, 6, head=False),
    Setting(768, 4, 4),
    Setting(1024, 2, 4, vocabulary=16384),
    Setting(512, 4, 4, attention="sdpa"),
    Setting(256, 4, 8, attention="sdpa", head=False),
    Setting(512, 2, 3, attention="dense"),
    Setting(512, 4, 4, bf16=True),
    Setting(768, 2, 6, bf16=True, head=False),
    Setting(512, 2, 4, attention="sdpa", compiled=True),
    Setting(768, 2, 3, attention="dense", compiled=True, head=False),
)


def best_s(work: Callable[[], Any], least_s: float = 0.05, repeats: int = 5) -> float:
    """CPU seconds of one call: the best of several means."""
    work()
    calls = 1
    while (spent := _spent(work, calls)) < least_s and calls < 4096:
        calls = max(calls + 1, int(calls * min(8.0, 1.3 * least_s / max(spent, 1e-6))))
    return min(_spent(work, calls) for _ in range(repeats)) / calls


def _spent(work: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        work()
    return time.process_time() - start


def product_curve(dtype: torch.dtype) -> Curve:
    """FLOP/s over the shortest side; each of the three sides takes its turn, in two layouts."""
    curve = {}
    for side in SIDES:
        seconds = flops = 0.0
        for m, k, n in ((side, 1024, 1024), (1024, side, 1024), (1024, 1024, side)):
            x, w, g = (torch.randn(s, dtype=dtype) for s in ((m, k), (n, k), (m, n)))
            for product in (lambda x=x, w=w: x @ w.t(), lambda w=w, g=g: g @ w):
                seconds += best_s(product, 0.02, 3)
                flops += 2.0 * m * k * n
        curve[float(side)] = flops / seconds
    return curve


def pass_curves(dtype: torch.dtype) -> dict[str, Curve]:
    """Bytes/s of each kind of operation over the bytes that it touches."""
    curves: dict[str, dict[float, float]] = {}
    gelu, width = TanhGELU(), 512
    weight, bias = torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)
    for size in SIZES:
        rows = max(1, size // (width * dtype.itemsize))
        a, b = torch.randn(rows, width, dtype=dtype), torch.randn(rows, width, dtype=dtype)
        index, nbytes = torch.randperm(rows), extent(a)
        works: dict[str, tuple[int, Callable[[], Any]]] = {
            "pass": (3 * nbytes, lambda a=a, b=b: a + b),
            "special": (2 * nbytes, lambda a=a: gelu(a)),
            "norm": (2 * nbytes, lambda a=a: nn.functional.layer_norm(a, (width,), weight, bias)),
            "rows": (2 * nbytes, lambda a=a, index=index: a.index_select(0, index)),
        }
        for kind, (touched, work) in works.items():
            with torch.no_grad():
                curves.setdefault(kind, {})[float(touched)] = touched / best_s(work, 0.02, 3)
    return {**curves, "update": {1.0: _update_rate(dtype)}}


def _update_rate(dtype: torch.dtype) -> float:
    weight = nn.Parameter(torch.randn(4 << 20, dtype=dtype))
    weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW([weight], fused=True)
    # reads weight, gradient and two moments; writes weight and moments
    return 7 * extent(weight) / best_s(optimizer.step)


def attention_rates(
    name: str, batch: PackedBatch, heads: int, dtype: torch.dtype
) -> tuple[float, float]:
    """FLOP/s of a backend, forward and backward, over the visible pairs."""
    plan, pairs = build_plan(name, batch.visibility, CPU), batch.visibility.pairs()
    q, k, v = (
        torch.randn(1, heads, batch.tokens, 64, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    run = lambda: attend(q, k, v, plan, scale=0.125)  # noqa: E731
    forward = best_s(run)
    out = run()
    backward = best_s(lambda: out.backward(torch.ones_like(out), retain_graph=True))
    return 4.0 * pairs * heads * 64 / forward, 10.0 * pairs * heads * 64 / backward


def call_s() -> float:
    """Seconds of one operation on almost nothing, with autograd around it; mean of forward and backward."""
    x = torch.zeros(4, 4, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(50):
            y = y * 1.5
        y.sum().backward()

    return best_s(chain) / 100


def step_of(
    setting: Setting, model: ShowO, optimizer: Any, batch: PackedBatch
) -> Callable[[], None]:
    """Forward, backward and update."""
    scale_F = torch.ones(len(FLOWS), device=batch.ids_N.device)

    def step() -> None:
        if setting.head:
            loss, _ = model(batch, flow_scale_F=scale_F)
        else:
            from showo_dist.models import showo

            plan = showo.build_plan(setting.attention, batch.visibility, batch.ids_N.device)
            loss = model._hidden(batch, plan, None).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build(setting: Setting) -> tuple[ShowO, Any]:
    """Model and optimizer of a setting, on the current device."""
    sizes = PhiConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.width,
        intermediate_size=4 * setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.width // 64,
    )
    model = ShowO(sizes, attention=setting.attention).to(setting.dtype).train()
    if setting.compiled:
        for block in model.showo.model.layers:
            block.mlp.activation_fn = nn.GELU(approximate="tanh")
            block.compile()
    if not setting.head:
        model.showo.lm_head.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(parameters, fused=True)


def batch_of(setting: Setting) -> PackedBatch:
    """Text-to-image samples: text, then one bidirectional span of image codes, all of it labelled."""
    ids = torch.arange(LENGTH) % setting.vocabulary
    spans = [Span(LENGTH - 256), Span(256, bidirectional=True)]
    rows = torch.arange(LENGTH - 256, LENGTH)
    one = Sequence("t2i", ids, spans, label_rows_P=rows, targets_P=ids[rows])
    return pack([one] * setting.samples, pad_id=0)


def predicted(setting: Setting, rates: Rates) -> tuple[float, list[Entry]]:
    """Seconds of a step from shapes alone."""
    batch = batch_of(setting)
    with torch.device("meta"):
        model, optimizer = build(setting)
        for parameter in (p for g in optimizer.param_groups for p in g["params"]):
            moments = {
                "exp_avg": torch.empty_like(parameter),
                "exp_avg_sq": torch.empty_like(parameter),
            }
            optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
    ledger = Ledger(CPU)
    step = step_of(setting, model, optimizer, on_meta(batch))
    with as_if(CPU, Shapes(CPU)), ledger, parts_of(ledger, model):
        step()
    fuse(ledger)
    return rates.step_s(ledger.entries), ledger.entries


def measured(setting: Setting, repeats: int) -> float:
    """CPU seconds of a real step, the best of several."""
    torch.manual_seed(0)
    model, optimizer = build(setting)
    step = step_of(setting, model, optimizer, batch_of(setting))
    for _ in range(2):
        step()
    return min(_spent(step, 1) for _ in range(repeats))


def rates_of_machine(dtypes: tuple[torch.dtype, ...]) -> dict[torch.dtype, Rates]:
    """This machine's rates for computations in each dtype."""
    launch = call_s()
    products = {dtype: product_curve(dtype) for dtype in dtypes}
    return {
        dtype: Rates(
            products=products,
            convolution={},
            attention=(1.0, 1.0),
            passes=pass_curves(dtype),
            launch_s=launch,
            queued=False,
            source="measured by benchmarks/ledger.py",
        )
        for dtype in dtypes
    }


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """One row per setting."""
    machine = rates_of_machine((torch.float32, torch.bfloat16))
    print("\n".join(described(machine)), flush=True)
    for setting in SETTINGS:
        batch, rates = batch_of(setting), machine[setting.dtype]
        if setting.attention != "dense":
            heads = setting.width // 64
            found = attention_rates(setting.attention, batch, heads, setting.dtype)
            rates = replace(rates, attention=found)
        ahead, entries = predicted(setting, rates)
        real = measured(setting, repeats)
        row = {
            "setting": f"{setting.width} × {setting.layers}, {batch.tokens} tokens, {setting.attention}"
            + (", compiled" if setting.compiled else "")
            + ("" if setting.head else ", no head")
            + (", bf16" if setting.bf16 else ""),
            "operations": len(entries),
            "predicted ms": 1e3 * ahead,
            "measured ms": 1e3 * real,
            "predicted / measured": ahead / real,
        }
        print(row, flush=True)
        yield row


def described(machine: dict[torch.dtype, Rates]) -> Iterator[str]:
    """The measured rates."""
    for dtype, rates in machine.items():
        yield f"{dtype}: call {1e6 * rates.launch_s:.1f} µs"
        yield "  products, GFLOP/s by shortest side: " + _points(rates.products[dtype])
        for kind, curve in rates.passes.items():
            yield f"  {kind}, GB/s by bytes: " + _points(curve)


def _points(curve: Curve) -> str:
    return ", ".join(f"{x:,.0f}: {y / 1e9:.1f}" for x, y in curve.items())


def main() -> None:
    """Measure, predict, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    options.device = "cpu"
    torch.set_num_threads(1)
    table = list(rows(options.repeats))
    errors = [abs(row["predicted / measured"] - 1) for row in table]
    findings = {
        "largest deviation": max(errors),
        "within 20 %": float(sum(e <= 0.2 for e in errors)),
    }
    report("ledger", table, findings, {"settings": len(table)}, options)


if __name__ == "__main__":
    main()
