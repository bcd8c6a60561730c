"""Token ids, labels and attention masks equal the published ones in every entry."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from showo_dist.sequences import Sequence, TextEncoder, Vocabulary, builders
from showo_dist.sequences.masking import mask_schedule
from tests.parity import layouts
from tests.parity.padded import IGNORE, Padded, place


def padded(
    sequences: list[Sequence], ids_BL: Tensor, pad: int, *, left: bool, shifted: bool
) -> list[Padded]:
    return [place(s, ids_BL.shape[1], pad, left=left, shifted=shifted) for s in sequences]


def check(
    rows: list[Padded], ids_BL: Tensor, labels_BL: Tensor | None, mask_B1LL: Tensor | None
) -> None:
    assert len(rows) == len(ids_BL) > 0
    for b, row in enumerate(rows):
        assert torch.equal(row.ids_L, ids_BL[b])
        if labels_BL is not None:
            assert torch.equal(row.labels_L, labels_BL[b])
        if mask_B1LL is not None:
            real = row.real_L
            assert torch.equal(row.mask_LL[real], mask_B1LL[b, 0][real])


def supervised(labels_BL: Tensor, first: int) -> Tensor:
    """The labels from column ``first`` on: the published loss slices off those before it."""
    labels_BL = labels_BL.clone()
    labels_BL[:, :first] = IGNORE
    return labels_BL


def test_t2i(
    tensors: Any, texts: dict, encoder: TextEncoder, vocabulary: Vocabulary, meta: SimpleNamespace
) -> None:
    s = tensors("sequences")
    rows = padded(
        layouts.t2i(s, texts, encoder, vocabulary, meta),
        s["t2i.input_ids"],
        vocabulary.pad,
        left=True,
        shifted=False,
    )
    check(rows, s["t2i.input_ids"], supervised(s["t2i.labels"], meta.text_len + 1), s["t2i.mask"])


def test_t2i_condition_dropout(tensors: Any, vocabulary: Vocabulary, meta: SimpleNamespace) -> None:
    s = tensors("sequences")
    dropped = [
        builders.t2i_dropped(
            layouts.masked_codes(codes - vocabulary.image_offset, mask, meta.code), vocabulary
        )
        for codes, mask in zip(s["t2i.codes"], s["t2i.masked"], strict=True)
    ]
    rows = padded(dropped, s["t2i_dropped.input_ids"], vocabulary.pad, left=True, shifted=False)
    check(
        rows,
        s["t2i_dropped.input_ids"],
        supervised(s["t2i_dropped.labels"], meta.text_len + 1),
        None,
    )


def test_t2i_prompt(
    tensors: Any, texts: dict, encoder: TextEncoder, vocabulary: Vocabulary, meta: SimpleNamespace
) -> None:
    s = tensors("sequences")
    empty = torch.full((meta.img,), meta.code)
    prompts = [
        builders.t2i_prompt(encoder.encode(t), empty, meta.text_len, vocabulary)
        for t in texts["captions"]
    ]
    rows = padded(prompts, s["t2i_gen.input_ids"], vocabulary.pad, left=True, shifted=False)
    check(rows, s["t2i_gen.input_ids"], None, None)


def test_lm(
    tensors: Any, texts: dict, encoder: TextEncoder, vocabulary: Vocabulary, meta: SimpleNamespace
) -> None:
    s = tensors("sequences")
    rows = padded(
        layouts.lm(texts, encoder, vocabulary, meta),
        s["lm.input_ids"],
        vocabulary.pad,
        left=False,
        shifted=True,
    )
    check(rows, s["lm.input_ids"], supervised(s["lm.labels"], 1), s["lm.mask"])


def test_mmu(
    tensors: Any, texts: dict, encoder: TextEncoder, vocabulary: Vocabulary, meta: SimpleNamespace
) -> None:
    s = tensors("sequences")
    rows = padded(
        layouts.mmu(s, texts, encoder, vocabulary, meta),
        s["mmu.input_ids"],
        vocabulary.pad,
        left=False,
        shifted=True,
    )
    check(rows, s["mmu.input_ids"], s["mmu.labels"], s["mmu.mask"])


def test_recon_vq(
    tensors: Any, encoder: TextEncoder, vocabulary: Vocabulary, meta: SimpleNamespace
) -> None:
    g = tensors("reca_vq_train")
    rows = padded(
        layouts.recon_vq(g, encoder, vocabulary, meta),
        g["recon.input_ids"],
        vocabulary.pad,
        left=True,
        shifted=False,
    )
    check(rows, g["recon.input_ids"], g["recon.labels"], g["recon.mask"])


def test_mmu_clip(
    tensors: Any, encoder: TextEncoder, vocabulary: Vocabulary, meta: SimpleNamespace
) -> None:
    g = tensors("reca_clip_train")
    sequences = layouts.mmu_clip(g, encoder, vocabulary, meta)
    length = g["mmu.labels"].shape[1]
    rows = [place(s, length, vocabulary.pad, left=False, shifted=True) for s in sequences]
    for b, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        start, slots = sequence.feature_start, len(sequence.features_SC)
        without_image = torch.cat([row.ids_L[:start], row.ids_L[start + slots :]])
        assert torch.equal(without_image, g["mmu.input_ids_without_image"][b])
        assert torch.equal(row.labels_L, g["mmu.labels"][b])
    real = rows[0].real_L
    assert torch.equal(rows[0].mask_LL[real], g["mmu.mask_row0"][real])


def test_recon_clip(
    tensors: Any, encoder: TextEncoder, vocabulary: Vocabulary, meta: SimpleNamespace
) -> None:
    g = tensors("reca_clip_train")
    sequences = layouts.recon_clip(g, encoder, vocabulary, meta)
    length = g["recon.input_ids"].shape[1]
    first_image, end = length - 1 - meta.img, length - 1
    for b, sequence in enumerate(sequences):
        row = place(sequence, length, vocabulary.pad, left=False, shifted=False)
        start, slots = sequence.feature_start, len(sequence.features_SC)
        places = torch.ones(length, dtype=torch.bool)
        places[start : start + slots] = False
        assert torch.equal(row.ids_L[places], g["recon.input_ids"][b][places])
        assert torch.equal(row.labels_L[first_image:end], g["recon.labels"][b][first_image:end])
        assert (row.labels_L[:first_image] == IGNORE).all() and row.labels_L[end] == IGNORE
        assert torch.equal(row.mask_LL[row.real_L], g["recon.mask"][b, 0][row.real_L])


@pytest.mark.parametrize("name", ["cosine", "linear", "pow2", "sigmoid"])
def test_mask_schedules(tensors: Any, name: str) -> None:
    g = tensors("mask_schedules")
    assert torch.equal(mask_schedule(name)(g["t"]), g[name])


def test_vocabulary(vocabulary: Vocabulary, meta: SimpleNamespace) -> None:
    assert (vocabulary.image_offset, vocabulary.size, vocabulary.mask) == (
        meta.image_offset,
        meta.vocab,
        meta.mask_id,
    )
    for token, index in meta.special.items():
        expected = {"<|pad|>": "[PAD]"}.get(token, token)
        ours = vocabulary.bos if token in ("<|sot|>", "<|eot|>") else vocabulary.special(expected)
        assert ours == index
