"""Compare the attention backends on packed rows of Show-o's layouts with padded and with mask-free attention.

    python benchmarks/attention.py [--device cuda] [--size show-o] [--dtype bf16] [--json FILE]

Every backend runs one layer's attention, forward and backward, over one packed row of t2i, mmu and
reconstruction documents. For comparison: the published way (each flow padded to its length, a dense boolean
mask, ``scaled_dot_product_attention``), and torch's attention without any mask over the same documents, all
causal and all full. TFLOP/s count visible pairs only: 4 D forward and 10 D backward per pair and head.
Needs torch only.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from common import Clock, Timing, arguments, interleaved, peak_bytes, report
from torch import Tensor

from showo_dist.runtime.numerics import uses_bf16
from showo_kernels import Span, Visibility, attend, build_plan, select_backend
from showo_kernels.flash import FlashPlan, PlacedCall
from showo_kernels.planned import PlannedAttention
from showo_kernels.runs import find_runs
from showo_kernels.varlen import VarlenCall

HEAD_DIM = 64
SCALE = HEAD_DIM**-0.5
FORWARD_FLOPS, BACKWARD_FLOPS = 4 * HEAD_DIM, 10 * HEAD_DIM  # per pair and head
DENSE_LIMIT = 4 << 30  # bytes of scores above which ``dense`` is left out


@dataclass(frozen=True)
class Sizes:
    """Heads, documents per flow, tokens of their parts, and the lengths that they are padded to."""

    heads: int
    documents: int
    image: int
    clip: int
    t2i_length: int
    mmu_length: int
    recon_length: int
    mmu_text: int


SIZES = {
    "tiny": Sizes(2, 1, 16, 36, 48, 120, 100, 40),
    "small": Sizes(4, 2, 256, 144, 387, 448, 530, 200),
    "show-o": Sizes(32, 4, 1024, 576, 1155, 1603, 1730, 256),
}
RECON_TEXT = 40

Documents = list[list[Span]]


def _texts(count: int, longest: int) -> list[int]:
    """Return text lengths evenly spread below ``longest``."""
    return [max(1, longest * (i + 1) // (count + 1)) for i in range(count)]


def layouts(sizes: Sizes) -> list[tuple[Documents, int]]:
    """Return the documents of each flow (docs/specification.md, section 4) and their padded length."""
    n, image, clip = sizes.documents, sizes.image, Span(sizes.clip, True, True)
    t2i = [[Span(t), Span(image + 2, True)] for t in _texts(n, sizes.t2i_length - image - 2)]
    mmu = [[Span(30), clip, Span(t)] for t in _texts(n, sizes.mmu_text)]
    recon = [
        [Span(2), clip, Span(t + 2), Span(image, True), Span(1)] for t in _texts(n, RECON_TEXT)
    ]
    return [(t2i, sizes.t2i_length), (mmu, sizes.mmu_length), (recon, sizes.recon_length)]


@dataclass(frozen=True)
class Setting:
    """Heads, device and dtype of the attention."""

    heads: int
    device: torch.device
    dtype: torch.dtype

    def draw(self, batch: int, tokens: int) -> list[Tensor]:
        """Sample query, key, value and the output's gradient, each (B, H, T, D)."""
        shape = (batch, self.heads, tokens, HEAD_DIM)
        generator = torch.Generator(self.device).manual_seed(tokens)
        tensors = [
            torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)
            for _ in range(4)
        ]
        return [*(x.requires_grad_() for x in tensors[:3]), tensors[3]]


class Packed:
    """One backend over the packed row of all documents."""

    def __init__(self, backend: str, documents: Documents, setting: Setting) -> None:
        self.backend, self.setting = backend, setting
        row = Visibility.from_documents(documents)
        self.pairs = row.pairs()
        self.visibility = row.pad_to(-(-len(row) // 128) * 128)
        self.trains = backend != "flex" or setting.device.type == "cuda"
        tensors = setting.draw(1, len(self.visibility))
        self.tensors = tensors if self.trains else [x.detach() for x in tensors]

    def __call__(self, clock: Clock) -> None:
        q, k, v, grad = self.tensors
        plan = clock("plan", lambda: build_plan(self.backend, self.visibility, self.setting.device))
        out = clock("forward", lambda: attend(q, k, v, plan, scale=SCALE))
        if self.trains:
            clock("backward", lambda: torch.autograd.grad(out, (q, k, v), grad))


class PaddedDense:
    """The published way: for each flow a padded batch and a (B, 1, L, L) mask."""

    def __init__(self, flows: Sequence[tuple[Documents, int]], setting: Setting) -> None:
        self.flows, self.setting = flows, setting
        self.pairs = sum(Visibility.from_documents(d).pairs() for d, _ in flows)
        self.tensors = [setting.draw(len(documents), length) for documents, length in flows]

    def _masks(self) -> list[Tensor]:
        rows = [
            [Visibility.from_documents([d]).pad_to(length) for d in documents]
            for documents, length in self.flows
        ]
        device = self.setting.device
        return [torch.stack([v.to(device).dense() for v in flow])[:, None] for flow in rows]

    def __call__(self, clock: Clock) -> None:
        masks = clock("plan", self._masks)
        inputs = [x for q, k, v, _ in self.tensors for x in (q, k, v)]
        outputs = clock(
            "forward",
            lambda: [
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)
                for (q, k, v, _), mask in zip(self.tensors, masks, strict=True)
            ],
        )
        grads = [tensors[3] for tensors in self.tensors]
        clock("backward", lambda: torch.autograd.grad(outputs, inputs, grads))


class Plain:
    """torch's attention without a mask, as if each document were all causal or all full.

    On a GPU this is one FlashAttention call: the lower bound of the time per pair.
    """

    def __init__(self, causal: bool, documents: Documents, setting: Setting) -> None:
        self.causal, self.setting = causal, setting
        self.lengths = [sum(span.length for span in document) for document in documents]
        self.pairs = sum(n * (n + 1) // 2 if causal else n * n for n in self.lengths)
        self.tensors = setting.draw(1, sum(self.lengths))
        ends = torch.tensor([0, *self.lengths]).cumsum(0).int().to(setting.device)
        total, longest = sum(self.lengths), max(self.lengths)
        call = VarlenCall(ends, ends, longest, longest, self.pairs, causal)
        self.plan = FlashPlan(total, (PlacedCall(call, ends[:0].long()),))

    def _forward(self) -> Tensor:
        q, k, v, _ = self.tensors
        if self.setting.device.type == "cuda":
            return PlannedAttention.of(q, k, v, self.plan, SCALE)
        pieces = zip(*(x.split(self.lengths, dim=2) for x in (q, k, v)), strict=True)
        outputs = [
            F.scaled_dot_product_attention(*piece, is_causal=self.causal, scale=SCALE)
            for piece in pieces
        ]
        return torch.cat(outputs, dim=2)

    def __call__(self, clock: Clock) -> None:
        q, k, v, grad = self.tensors
        out = clock("forward", self._forward)
        clock("backward", lambda: torch.autograd.grad(out, (q, k, v), grad))


def pairs_by_kind(visibility: Visibility) -> Counter[str]:
    """Count the visible pairs in causal and in full runs."""
    pairs: Counter[str] = Counter()
    for run in find_runs(visibility):
        hidden = run.rows * (run.rows - 1) // 2 if run.causal else 0
        pairs["causal" if run.causal else "full"] += run.rows * run.keys - hidden
    return pairs


def usable_backends(tokens: int, setting: Setting) -> tuple[list[str], str]:
    """Return the backends that can run here, that of ``auto`` first, and the reason for it."""
    chosen, reason = select_backend("auto", setting.device, setting.dtype)
    names = [chosen]
    for name in ("flash", "flex", "native", "sdpa", "dense"):
        if name == "dense" and setting.heads * tokens**2 * 4 > DENSE_LIMIT:
            print(f"{name} left out: its scores alone need over {DENSE_LIMIT >> 30} GiB")
            continue
        try:
            select_backend(name, setting.device, setting.dtype)
        except ValueError as problem:
            print(f"{name} left out: {problem}")
            continue
        if name not in names:
            names.append(name)
    return names, reason


def row(
    name: str, timings: dict[str, Timing], pairs: int, heads: int, memory: int | None
) -> dict[str, Any]:
    """Return one row of the table."""
    wall = {stage: timing.wall_s for stage, timing in timings.items()}

    def rate(stage: str, flops: int) -> float | None:
        return flops * heads * pairs / wall[stage] / 1e12 if stage in wall else None

    return {
        "attention": name,
        **{
            f"{stage} ms": 1e3 * wall[stage] if stage in wall else None
            for stage in ("plan", "forward", "backward")
        },
        "forward TFLOP/s": rate("forward", FORWARD_FLOPS),
        "backward TFLOP/s": rate("backward", BACKWARD_FLOPS),
        "cpu ms": 1e3 * sum(timing.cpu_s for timing in timings.values()),
        "peak MB": None if memory is None else memory / 1e6,
        "pairs": pairs,
    }


def attention_ms(line: dict[str, Any]) -> float:
    return line["forward ms"] + line["backward ms"]


def compare(chosen: str, rows: dict[str, dict[str, Any]], kinds: Counter[str]) -> dict[str, float]:
    """Compare the backend of ``auto`` with padded attention and with attention without a mask."""
    ours = attention_ms(rows[chosen])
    equal = sum(
        attention_ms(rows[f"plain {kind}"]) * kinds[kind] / rows[f"plain {kind}"]["pairs"]
        for kind in ("causal", "full")
    )
    return {
        f"padded dense mask / {chosen}, forward + backward": attention_ms(rows["padded dense mask"])
        / ours,
        f"{chosen} / plain attention at equal pairs": ours / equal,
        f"plan of {chosen} / forward + backward of one layer": rows[chosen]["plan ms"] / ours,
    }


def main() -> None:
    options = arguments(__doc__, list(SIZES))
    sizes, device = SIZES[options.size], torch.device(options.device)
    dtype = torch.bfloat16 if uses_bf16(options.dtype, device) else torch.float32
    setting = Setting(sizes.heads, device, dtype)
    flows = layouts(sizes)
    documents = [document for group, _ in flows for document in group]
    visibility = Visibility.from_documents(documents)
    backends, reason = usable_backends(len(visibility), setting)
    print(f"attention {backends[0]}: {reason}")
    sides: dict[str, Packed | PaddedDense | Plain] = {
        name: Packed(name, documents, setting) for name in backends
    }
    sides["padded dense mask"] = PaddedDense(flows, setting)
    sides |= {
        f"plain {kind}": Plain(kind == "causal", documents, setting) for kind in ("causal", "full")
    }
    timings = interleaved(sides, device, options.repeats)
    rows = {
        name: row(
            name,
            timings[name],
            side.pairs,
            sizes.heads,
            peak_bytes(lambda s=side: s(Clock(device)), device),
        )
        for name, side in sides.items()
    }
    findings = compare(backends[0], rows, pairs_by_kind(visibility))
    settings = {
        **asdict(sizes),
        "head_dim": HEAD_DIM,
        "dtype": str(dtype),
        "tokens": len(visibility),
    }
    report("attention", list(rows.values()), findings, settings, options)


if __name__ == "__main__":
    main()
