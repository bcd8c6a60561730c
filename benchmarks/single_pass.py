"""Compare one packed pass with the padded step of two forwards, on the same samples and weights.

    python benchmarks/single_pass.py [--device cuda] [--size show-o] [--dtype bf16] [--json FILE]

A step is all that a user waits for: the batch and its masks, forward, backward and AdamW. The padded side
re-creates RecA's published CLIP variant: understanding and reconstruction are padded to their fixed lengths
and run through two forwards with a dense additive mask, the first one with a text-to-image row whose loss
has coefficient 0; the head is applied at every position, logits are cast to fp32, and the cross-entropy
ignores unsupervised positions; one backward for the sum, and AdamW as ``torch.optim`` makes it by default.
It uses the same weights, transformers' attention and transformers' activation (``gelu_new``, eight kernels);
the row "padded, fused gelu" uses our activation. ``--compiled`` adds the packed step with
``model.compile: true``. Before anything is timed, losses and gradients of both
sides are compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from common import Clock, Timing, arguments, interleaved, peak_bytes, report
from torch import Tensor, nn
from transformers import PhiConfig
from transformers.activations import NewGELUActivation

from showo_dist.models.backbone import ATTENTION
from showo_dist.models.showo import ShowO
from showo_dist.runtime.numerics import uses_bf16
from showo_dist.sequences import FLOWS, PackedBatch, Sequence, Vocabulary, builders, pack
from showo_dist.sequences.builders import CLIP_RECON_TEXT_WIDTH
from showo_dist.sequences.masking import (
    IGNORE,
    MaskedCodes,
    MaskingOptions,
    mask_codes,
    mask_schedule,
    sample_rng,
)
from showo_dist.training.metrics import Work
from showo_kernels import TanhGELU, Visibility, build_plan, select_backend

SYSTEM_TOKENS = 28  # docs/specification.md, section 3
MMU_TEXT, MMU_ANSWER = (64, 224), 0.7  # tokens of a conversation, and the share that is supervised
LEARNING_RATE = 5e-7  # of RecA's configs; the weights stay about the same while steps are timed
PROMPT_TEXT = (15, 35)  # tokens of a reconstruction prompt


@dataclass(frozen=True)
class Sizes:
    """Model and batch; ``budget`` is M and ``image`` is N of docs/specification.md, section 3."""

    layers: int
    width: int
    heads: int
    mmu: int
    recon: int
    image: int
    text_tokens: int = 50295
    codebook: int = 8192
    clip_tokens: int = 576
    clip_width: int = 1024
    budget: int = 576
    t2i: int = 1

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.text_tokens, self.codebook, bos=0)


SIZES = {
    "tiny": Sizes(2, 64, 2, 1, 1, 16, text_tokens=200, codebook=64, clip_tokens=36, budget=240),
    "small": Sizes(8, 512, 8, mmu=2, recon=2, image=256),
    "small-512px": Sizes(8, 512, 8, mmu=2, recon=2, image=1024),
    "show-o": Sizes(24, 2048, 32, mmu=2, recon=2, image=1024),
}


def build_model(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> ShowO:
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=sizes.vocabulary.size,
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
    )
    backend, reason = select_backend("auto", device, dtype)
    print(f"attention {backend}: {reason}")
    with device:
        model = ShowO(config, sizes.clip_width, backend)
    for (
        parameter
    ) in model.parameters():  # like DeepSpeed: parameters only, the rotary table stays fp32
        parameter.data = parameter.data.to(dtype)
    return model


def make_sequence(flow: str, position: int, sizes: Sizes) -> Sequence:
    """A sample of random tokens with the lengths of real samples."""
    rng, vocabulary = sample_rng(0, flow, position), sizes.vocabulary

    def text(shortest: int, longest: int) -> list[int]:
        return rng.integers(1, vocabulary.text, size=rng.integers(shortest, longest + 1)).tolist()

    def masked() -> MaskedCodes:
        codes = torch.from_numpy(rng.integers(sizes.codebook, size=sizes.image))
        return mask_codes(codes, sizes.codebook, MaskingOptions(mask_schedule("cosine")), rng)

    if flow == "t2i":
        return builders.t2i(text(*PROMPT_TEXT), masked(), sizes.budget, vocabulary)
    features = torch.from_numpy(
        rng.standard_normal((sizes.clip_tokens, sizes.clip_width), dtype="float32")
    )
    if flow == "mmu":
        ids, system = text(*MMU_TEXT), text(SYSTEM_TOKENS, SYSTEM_TOKENS)
        supervised = [place >= (1 - MMU_ANSWER) * len(ids) for place in range(len(ids))]
        length = mmu_length(sizes)
        return builders.mmu_clip(ids, supervised, system, features, length, vocabulary)
    return builders.recon_clip(text(*PROMPT_TEXT), features, masked(), vocabulary)


def mmu_length(sizes: Sizes) -> int:
    """Published length of the understanding and text-to-image rows: M + N + 3."""
    return sizes.budget + sizes.image + 3


def recon_length(sizes: Sizes) -> int:
    """Published length of the reconstruction rows: text part (128), CLIP, soi, image, eoi."""
    return CLIP_RECON_TEXT_WIDTH + sizes.clip_tokens + sizes.image + 2


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of one forward at their published length.

    Attributes:
        ids_BL: token ids; feature positions have the pad id.
        features_SFC, start: features of the last S rows and the column of the first.
        mask_B1LL: added to the attention scores, in the model's dtype: 0 where a key is visible, else the
            dtype's minimum; padding sees itself.
        labels_BL: target ids, IGNORE at unsupervised positions.
    """

    ids_BL: Tensor
    features_SFC: Tensor
    start: int
    mask_B1LL: Tensor
    labels_BL: Tensor

    @property
    def plain(self) -> int:
        """Rows without features, which are the first."""
        return len(self.ids_BL) - len(self.features_SFC)


def _pad_row(sequence: Sequence, length: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and mask of one row; columns come from the position ids."""
    positions = sequence.position_ids_L
    places = torch.arange(len(sequence)) if positions is None else positions
    ids_L, labels_L = torch.full((length,), pad), torch.full((length,), IGNORE)
    ids_L[places] = sequence.ids_L
    labels_L[places[sequence.label_rows_P]] = sequence.targets_P
    mask_LL = torch.eye(length, dtype=torch.bool)
    mask_LL[places[:, None], places] = Visibility.from_documents([sequence.spans]).dense()
    return ids_L, labels_L, mask_LL


def pad(
    sequences: list[Sequence], length: int, vocabulary: Vocabulary, dtype: torch.dtype
) -> PaddedBatch:
    """Rows of one forward, padded to ``length``, those without features first; masks in ``dtype``."""
    rows = [_pad_row(sequence, length, vocabulary.pad) for sequence in sequences]
    ids, labels, seen = (torch.stack(column) for column in zip(*rows, strict=True))
    masks = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    features = [s.features_SC for s in sequences if s.features_SC is not None]
    start = sequences[-1].feature_start
    return PaddedBatch(ids, torch.stack(features), start, masks[:, None], labels)


def padded_logits(model: ShowO, batch: PaddedBatch, device: torch.device) -> Tensor:
    """One forward: fp32 logits at all positions; the model's attention must be transformers' own ``sdpa``."""
    table, plain = model.showo.model.embed_tokens, batch.plain
    embeds_BLD = table(batch.ids_BL.to(device))
    features_SFD = model.mm_projector(batch.features_SFC.to(device, table.weight.dtype))
    before, after = batch.start, batch.start + features_SFD.shape[1]
    rows_SLD = torch.cat(
        [embeds_BLD[plain:, :before], features_SFD, embeds_BLD[plain:, after:]], dim=1
    )
    embeds_BLD = torch.cat([embeds_BLD[:plain], rows_SLD])
    output = model.showo.model(inputs_embeds=embeds_BLD, attention_mask=batch.mask_B1LL.to(device))
    return model.showo.lm_head(output.last_hidden_state).float()


def mean_loss(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean cross-entropy over the labels."""
    return F.cross_entropy(logits_BLV.flatten(0, 1), labels_BL.to(logits_BLV.device).flatten())


@contextmanager
def library_modules(model: ShowO, activation: nn.Module) -> Iterator[None]:
    """Give the backbone transformers' own attention and ``activation`` inside the block."""
    perceptrons = [layer.mlp for layer in model.showo.model.layers]
    ours = [mlp.activation_fn for mlp in perceptrons]
    model.config._attn_implementation = "sdpa"
    for mlp in perceptrons:
        mlp.activation_fn = activation
    yield
    model.config._attn_implementation = ATTENTION
    for mlp, before in zip(perceptrons, ours, strict=True):
        mlp.activation_fn = before


class Padded:
    """Two forwards, one backward."""

    def __init__(
        self, model: ShowO, sequences: list[Sequence], sizes: Sizes, activation: nn.Module
    ) -> None:
        self.model, self.sizes, self.activation = model, sizes, activation
        by_flow = {flow: [s for s in sequences if s.flow == flow] for flow in FLOWS}
        self.first, self.second = by_flow["t2i"] + by_flow["mmu"], by_flow["recon"]
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    @property
    def tokens(self) -> int:
        """Positions computed."""
        first, second = mmu_length(self.sizes), recon_length(self.sizes)
        return len(self.first) * first + len(self.second) * second

    def _prepare(self) -> tuple[PaddedBatch, PaddedBatch]:
        vocabulary, dtype = self.sizes.vocabulary, next(self.model.parameters()).dtype
        return (
            pad(self.first, mmu_length(self.sizes), vocabulary, dtype),
            pad(self.second, recon_length(self.sizes), vocabulary, dtype),
        )

    def _forward(self, first: PaddedBatch, second: PaddedBatch) -> tuple[Tensor, Tensor, Tensor]:
        image = slice(-self.sizes.image - 1, -1)
        with library_modules(self.model, self.activation):
            logits_BLV = padded_logits(self.model, first, self.device)
            t2i, mmu = (
                mean_loss(logits_BLV[rows], first.labels_BL[rows])
                for rows in (slice(first.plain), slice(first.plain, None))
            )
            logits_BLV = padded_logits(self.model, second, self.device)
            return t2i, mmu, mean_loss(logits_BLV[:, image], second.labels_BL[:, image])

    def __call__(self, clock: Clock, update: bool = True) -> dict[str, float]:
        """Run one step and return the flow losses. Gradients stay in the model."""
        self.model.zero_grad()
        batches = clock("prepare", self._prepare)
        t2i, mmu, recon = clock("forward", lambda: self._forward(*batches))
        clock("backward", lambda: (0.0 * t2i + mmu + recon).backward())
        if update:
            clock("update", self.optimizer.step)
        return {"mmu": mmu.item(), "recon": recon.item()}


class Packed:
    """One forward, one backward."""

    def __init__(self, model: ShowO, sequences: list[Sequence], sizes: Sizes) -> None:
        self.model = model
        # A flow with coefficient 0 is not sampled.
        self.sequences = [s for s in sequences if s.flow != "t2i"]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        self.pad_id = sizes.vocabulary.pad
        self.device = next(model.parameters()).device
        self.batch = self._prepare()

    @property
    def tokens(self) -> int:
        """Positions computed."""
        return self.batch.tokens

    def _prepare(self) -> PackedBatch:
        batch = pack(
            self.sequences,
            pad_id=self.pad_id,
            feature_width=self.model.feature_width,
            multiple_of=128 if self.device.type == "cuda" else 1,
        )
        return batch.to(self.device)

    def _forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        scale_F = 1.0 / batch.label_counts().clamp(min=1).float()
        total, sums_F = self.model(batch, flow_scale_F=scale_F)
        return total, sums_F * scale_F

    def __call__(self, clock: Clock, update: bool = True) -> dict[str, float]:
        """Run one step and return the flow losses. Gradients stay in the model."""
        self.model.zero_grad()
        batch = clock("prepare", self._prepare)
        total, means_F = clock("forward", lambda: self._forward(batch))
        clock("backward", total.backward)
        if update:
            clock("update", self.optimizer.step)
        named = dict(zip(FLOWS, means_F.tolist(), strict=True))
        return {flow: named[flow] for flow in ("mmu", "recon")}


def check_equal(packed: Packed, padded: Packed | Padded, tolerance: float) -> None:
    """Fail unless both sides give the same losses and the same gradient (as one vector)."""
    outcomes = []
    for side in (packed, padded):
        losses = side(Clock(side.device), update=False)
        gradients = [p.grad.clone() for p in side.model.parameters() if p.grad is not None]
        outcomes.append((losses, gradients))
    (losses, gradients), (wanted_losses, wanted) = outcomes
    for flow, loss in losses.items():
        error = abs(loss / wanted_losses[flow] - 1)
        assert error <= tolerance, f"{flow}: {loss} packed, {wanted_losses[flow]} padded"
    missed = sum((x - y).float().square().sum() for x, y in zip(gradients, wanted, strict=True))
    whole = sum(y.float().square().sum() for y in wanted)
    error = float((missed / whole) ** 0.5)
    assert error <= 10 * tolerance, f"gradients differ by {error:.1e}"


def row(
    name: str, timings: dict[str, Timing], tokens: int, flops: float, memory: int | None
) -> dict[str, Any]:
    """One line of the table."""
    wall_s = sum(timing.wall_s for timing in timings.values())
    return {
        "step": name,
        **{f"{stage} ms": 1e3 * timing.wall_s for stage, timing in timings.items()},
        "total ms": 1e3 * wall_s,
        "cpu ms": 1e3 * sum(timing.cpu_s for timing in timings.values()),
        "needed TFLOP/s": flops / wall_s / 1e12,
        "peak MB": None if memory is None else memory / 1e6,
        "tokens": tokens,
    }


def plan_ms(packed: Packed, repeats: int) -> float:
    """Median time of building the attention plan, a part of the packed forward."""
    clock, model = Clock(packed.device), packed.model
    for _ in range(repeats):
        clock("plan", lambda: build_plan(model.attention, packed.batch.visibility, packed.device))
    return 1e3 * clock.medians()["plan"].wall_s


def compare(packed: dict[str, Any], padded: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of each padded step to a packed step."""
    return {
        f"{other['step']} / {packed['step']}, {column}": other[column] / packed[column]
        for other in padded
        for column in ("total ms", "cpu ms", "peak MB", "tokens")
        if packed[column]
    }


def main() -> None:
    options = arguments(
        __doc__, list(SIZES), compiled="also the packed step with compiled blocks and losses"
    )
    sizes, device = SIZES[options.size], torch.device(options.device)
    dtype = torch.bfloat16 if uses_bf16(options.dtype, device) else torch.float32
    model = build_model(sizes, device, dtype)
    flows = ["t2i"] * sizes.t2i + ["mmu"] * sizes.mmu + ["recon"] * sizes.recon
    sequences = [make_sequence(flow, i, sizes) for i, flow in enumerate(flows)]
    packed = Packed(model, sequences, sizes)
    sides: dict[str, Packed | Padded] = {
        "packed": packed,
        "padded": Padded(model, sequences, sizes, NewGELUActivation()),
        "padded, fused gelu": Padded(model, sequences, sizes, TanhGELU()),
    }
    if options.compiled:
        other = build_model(sizes, device, dtype)  # the same weights
        other.compile_blocks()
        sides = {"packed": packed, "packed, compiled": Packed(other, sequences, sizes), **sides}
    for side in list(sides.values())[1:]:
        check_equal(packed, side, 1e-4 if dtype == torch.float32 else 1e-2)
    for side in sides.values():
        side(Clock(device))  # makes the moments, which no step's peak contains
    memory = {}
    for name, side in sides.items():
        side.model.zero_grad()  # else the gradients count as memory from before the step
        memory[name] = peak_bytes(lambda s=side: s(Clock(device)), device)
    timings = interleaved(sides, device, options.repeats, warm_up=False)
    flops = Work.of(model).flops(packed.batch)
    rows = [row(n, timings[n], sides[n].tokens, flops, memory[n]) for n in sides]
    settings = {**asdict(sizes), "dtype": str(dtype), "vocabulary": sizes.vocabulary.size}
    settings["labels"] = len(packed.batch.targets_P)
    padded = [r for r in rows if r["step"].startswith("padded")]
    findings = {}
    for base in rows[: -len(padded)]:
        findings |= compare(base, padded)
    findings["attention plan / packed step"] = plan_ms(packed, 20) / rows[0]["total ms"]
    report("single_pass", rows, findings, settings, options)


if __name__ == "__main__":
    main()
