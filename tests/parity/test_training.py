"""Logits, losses and gradients of the single pass equal those of the two published forwards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from showo_dist.models.showo import ShowO
from showo_dist.sequences import FLOWS, PackedBatch, Sequence, TextEncoder, Vocabulary, pack
from tests.parity import layouts
from tests.parity.cut_golden import kept

LOGITS = {"rtol": 0.0, "atol": 1e-4}


def packed(sequences: list[Sequence], vocabulary: Vocabulary, model: ShowO) -> PackedBatch:
    return pack(sequences, pad_id=vocabulary.pad, feature_width=model.feature_width)


def single_pass(
    model: ShowO, batch: PackedBatch, coefficients: dict[str, float]
) -> dict[str, Tensor]:
    """Return the flow means of one pass; the gradients of their weighted total stay in the model."""
    counts = batch.label_counts()
    scale = (
        torch.tensor([coefficients.get(flow, 0.0) for flow in FLOWS]) / counts.clamp(min=1).float()
    )
    total, sums_F = model(batch, flow_scale_F=scale)
    total.backward()
    means = sums_F / counts.clamp(min=1).float()
    return {"total": total.detach(), **dict(zip(FLOWS, means, strict=True))}


def check_gradients(model: ShowO, golden: dict[str, Tensor], prefix: str = "grads.") -> None:
    """Fail if a gradient is off by more than 1e-3 of the largest entry of its tensor."""
    names = {k.removeprefix(prefix) for k in golden if k.startswith(prefix)}
    names = {name for name in names if not name.endswith(".rows")}
    parameters = dict(model.named_parameters())
    assert names and names <= set(parameters)
    for name in sorted(names):
        wanted = golden[prefix + name]
        ours = kept(golden, prefix + name, parameters[name].grad)
        error = (ours - wanted).abs().max()
        assert error <= 1e-3 * wanted.abs().max(), (
            f"{name}: off by {error:.2e} of {wanted.abs().max():.2e}"
        )


def check_losses(losses: dict[str, Tensor], golden: dict[str, Tensor]) -> None:
    for name, value in losses.items():
        if f"loss.{name}" in golden:
            torch.testing.assert_close(
                value, golden[f"loss.{name}"], **LOGITS, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_showo_vq(
    tensors: Any,
    texts: dict,
    encoder: TextEncoder,
    vocabulary: Vocabulary,
    meta: SimpleNamespace,
    build_model: Any,
) -> None:
    golden, s = tensors("showo_vq_train"), tensors("sequences")
    model = build_model(golden)
    sequences = {
        "t2i": layouts.t2i(s, texts, encoder, vocabulary, meta),
        "lm": layouts.lm(texts, encoder, vocabulary, meta),
        "mmu": layouts.mmu(s, texts, encoder, vocabulary, meta),
    }
    batch = packed([x for group in sequences.values() for x in group], vocabulary, model)
    with torch.no_grad():
        logits = model(batch, logit_rows=torch.arange(batch.tokens))
    start = 0
    for flow, group in sequences.items():
        for b, sequence in enumerate(group):
            wanted = golden[f"logits.{flow}"][b]
            wanted = wanted[-len(sequence) :] if flow == "t2i" else wanted[: len(sequence)]
            ours = kept(golden, f"logits.{flow}", logits[start : start + len(sequence)])
            torch.testing.assert_close(ours, wanted, **LOGITS)
            start += len(sequence)
    check_losses(single_pass(model, batch, meta.coefficients_showo_vq_train), golden)
    check_gradients(model, golden)


def test_reca_vq(
    tensors: Any,
    texts: dict,
    encoder: TextEncoder,
    vocabulary: Vocabulary,
    meta: SimpleNamespace,
    build_model: Any,
) -> None:
    golden, s = tensors("reca_vq_train"), tensors("sequences")
    model = build_model(tensors("showo_vq_train"))
    sequences = [
        *layouts.t2i(s, texts, encoder, vocabulary, meta),
        *layouts.mmu(s, texts, encoder, vocabulary, meta),
        *layouts.recon_vq(golden, encoder, vocabulary, meta),
    ]
    losses = single_pass(model, packed(sequences, vocabulary, model), meta.coefficients_reca)
    check_losses(losses, golden)
    check_gradients(model, golden)


@pytest.mark.parametrize("compat", [False, True], ids=["gradient-everywhere", "compat-reference"])
def test_reca_clip(
    tensors: Any,
    encoder: TextEncoder,
    vocabulary: Vocabulary,
    meta: SimpleNamespace,
    build_model: Any,
    compat: bool,
) -> None:
    golden = tensors("reca_clip_train")
    model = build_model(tensors("showo_vq_train"), golden)
    recon = layouts.recon_clip(golden, encoder, vocabulary, meta, frozen=compat)
    batch = packed(
        [*layouts.mmu_clip(golden, encoder, vocabulary, meta), *recon], vocabulary, model
    )
    with torch.no_grad():
        rows = torch.cat([torch.arange(len(s))[-1 - meta.img : -1] for s in recon])
        rows += batch.tokens - sum(len(s) for s in recon)
        rows[meta.img :] += len(recon[0])
        logits = model(batch, logit_rows=rows).unflatten(0, (len(recon), meta.img))
    ours = kept(golden, "logits.recon_image", logits)
    torch.testing.assert_close(ours, golden["logits.recon_image"], **LOGITS)
    check_losses(single_pass(model, batch, meta.coefficients_reca), golden)
    if compat:
        check_gradients(model, golden, "grads_compat.")
        with pytest.raises(AssertionError):  # the two modes differ
            check_gradients(model, golden)
    else:
        check_gradients(model, golden)
