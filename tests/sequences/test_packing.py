"""Packing: every sequence is recovered, empty batches and padding included."""

import torch
from torch import Tensor
from transformers import PhiConfig

from showo_dist.models.showo import ShowO
from showo_dist.sequences import FLOWS, Sequence, Vocabulary, builders, image_first, pack
from showo_dist.sequences.builders import answer_prompt
from showo_dist.sequences.masking import MaskingOptions, mask_codes, mask_schedule, sample_rng
from showo_dist.sequences.text import Words
from showo_kernels import Visibility, build_plan
from showo_kernels.runs import find_runs

VOCABULARY = Vocabulary(text=50, codebook=16, bos=0)
OPTIONS = MaskingOptions(schedule=mask_schedule("cosine"))


def masked(position: int = 0):
    return mask_codes(torch.arange(9), 16, OPTIONS, sample_rng(0, "t2i", position))


def some_of_everything() -> list[Sequence]:
    features = torch.arange(12.0).view(4, 3)
    return [
        builders.t2i([5, 6], masked(), 10, VOCABULARY),
        builders.lm([7, 8, 9], 20, VOCABULARY),
        builders.mmu_clip([3, 4, 0], [False, True, True], [11, 12], features, 40, VOCABULARY),
        builders.recon_clip([5], features + 100, masked(1), VOCABULARY, frozen_inputs=True),
        builders.mmu_caption([2, 3], torch.arange(9), 10, VOCABULARY),
        several_images(features),
    ]


def several_images(features: Tensor) -> Sequence:
    """Two images, a text, an image, a text; only the first image is global."""
    pieces = [features, features + 7, Words([5, 6], [True, True]), features + 9, Words([3], [True])]
    return answer_prompt(pieces, VOCABULARY, [11, 12])


def feature_rows(sequence: Sequence) -> Tensor:
    if sequence.feature_rows_S is not None:
        return sequence.feature_rows_S
    return torch.arange(4) + sequence.feature_start


def test_every_sequence_is_found_again() -> None:
    sequences = some_of_everything()
    batch = pack(sequences, pad_id=VOCABULARY.pad, feature_width=3)
    assert batch.tokens == batch.real_tokens == sum(len(s) for s in sequences)
    start = 0
    for number, sequence in enumerate(sequences):
        rows = torch.arange(start, start + len(sequence))
        assert (batch.visibility.document_T[rows] == number).all()
        here = (batch.label_rows_P >= start) & (batch.label_rows_P < start + len(sequence))
        assert torch.equal(batch.label_rows_P[here] - start, sequence.label_rows_P)
        assert torch.equal(batch.targets_P[here], sequence.targets_P)
        assert (batch.label_flow_P[here] == FLOWS.index(sequence.flow)).all()
        looked_up = torch.isin(batch.id_rows_N, rows)
        slots = torch.isin(batch.feature_rows_F, rows)
        assert int(looked_up.sum()) + int(slots.sum()) == len(sequence)
        ids = torch.full((len(sequence),), -1)
        ids[batch.id_rows_N[looked_up] - start] = batch.ids_N[looked_up]
        assert torch.equal(ids[ids >= 0], sequence.ids_L[ids >= 0])
        if sequence.features_SC is not None:
            assert torch.equal(batch.features_FC[slots], sequence.features_SC)
            assert torch.equal(batch.feature_rows_F[slots] - start, feature_rows(sequence))
        assert batch.keep_grad_T is not None
        assert (batch.keep_grad_T[rows] != sequence.frozen_inputs).all()
        start += len(sequence)


def test_padding_inside_a_clip_reconstruction_keeps_its_places() -> None:
    sequence = builders.recon_clip([5], torch.zeros(4, 3), masked(), VOCABULARY)
    positions = pack([sequence], pad_id=50, feature_width=3).position_ids_T
    text = 1 + 1 + 4 + 1 + 3  # mmu soi CLIP eoi bos text eos
    assert positions[:text].tolist() == list(range(text))
    assert positions[text:].tolist() == list(range(4 + 128, 4 + 128 + 11))


def test_a_rank_with_nothing_still_has_a_row() -> None:
    batch = pack([], pad_id=VOCABULARY.pad, feature_width=3)
    assert batch.tokens == 1 and batch.real_tokens == 0
    assert len(batch.targets_P) == 0 and batch.features_FC.shape == (0, 3)
    assert batch.label_counts().tolist() == [0.0] * len(FLOWS)


def test_a_rank_with_nothing_has_a_row_that_flex_takes() -> None:
    batch = pack([], pad_id=VOCABULARY.pad, feature_width=0, multiple_of=128)
    assert batch.tokens == 128 and batch.real_tokens == 0
    assert build_plan("flex", batch.visibility) is not None


def test_rounding_up_adds_nothing_that_counts() -> None:
    sequences = some_of_everything()
    plain = pack(sequences, pad_id=VOCABULARY.pad, feature_width=3)
    rounded = pack(sequences, pad_id=VOCABULARY.pad, feature_width=3, multiple_of=64)
    assert rounded.tokens % 64 == 0 and len(rounded.targets_P) % 64 == 0
    assert rounded.real_tokens == plain.real_tokens
    assert torch.equal(rounded.label_counts(), plain.label_counts())
    sees = rounded.visibility.dense()
    size = plain.tokens
    assert torch.equal(sees[:size, :size], plain.visibility.dense())
    assert not sees[:size, size:].any() and not sees[size:, :size].any()


def test_image_first_is_the_same_sequence_in_another_order() -> None:
    """Every row keeps its id, position, features, labels and what it attends to; others are left alone."""
    sequences = some_of_everything()
    for sequence in sequences:
        moved = image_first(sequence)
        if sequence.features_SC is None:
            assert moved is sequence
            continue
        order = moved.position_ids_L.argsort()
        positions = sequence.position_ids_L
        wanted = torch.arange(len(sequence)) if positions is None else positions
        assert torch.equal(moved.position_ids_L[order], wanted)
        assert torch.equal(moved.ids_L[order], sequence.ids_L)
        assert moved.feature_start == 0
        assert torch.equal(order[feature_rows(sequence)], feature_rows(moved))
        assert torch.equal(moved.label_rows_P, order[sequence.label_rows_P])
        assert torch.equal(moved.targets_P, sequence.targets_P)
        before, after = (Visibility.from_documents([s.spans]) for s in (sequence, moved))
        assert torch.equal(after.dense()[order][:, order], before.dense())
        assert after.pairs() == before.pairs()
        assert len(list(find_runs(after))) < len(list(find_runs(before)))


def test_image_first_gives_the_same_losses_and_gradients() -> None:
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model, found = ShowO(config, 3, "dense").double(), []
    for order in (lambda s: s, image_first):
        sequences = [order(s) for s in some_of_everything()]
        batch = pack(sequences, pad_id=VOCABULARY.pad, feature_width=3)
        total, sums = model(batch, flow_scale_F=torch.ones(len(FLOWS)))
        found.append([sums, *torch.autograd.grad(total, list(model.parameters()))])
    for plain, moved in zip(*found, strict=True):
        torch.testing.assert_close(moved, plain, rtol=1e-5, atol=1e-6)
