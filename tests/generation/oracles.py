"""Generation without a cache: every step computes whole sequences with the forward pass of training."""

from dataclasses import replace

import torch
from torch import Tensor

from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, Vocabulary, pack
from showo_kernels import Span


def _packed_logits(
    model: ShowO, vocabulary: Vocabulary, sequences: list[Sequence], rows: Tensor
) -> Tensor:
    batch = pack(sequences, pad_id=vocabulary.pad, feature_width=model.feature_width)
    with torch.no_grad():
        return model(batch, logit_rows=rows)


def last_logits(model: ShowO, vocabulary: Vocabulary, sequences: list[Sequence]) -> Tensor:
    """Logits (B, V) of the last row of each sequence."""
    ends = torch.tensor([len(s) for s in sequences]).cumsum(0) - 1
    return _packed_logits(model, vocabulary, sequences, ends)


def image_logits(
    model: ShowO, vocabulary: Vocabulary, sequences: list[Sequence], codes_BN: Tensor
) -> Tensor:
    """Logits (B, N, V) of each sequence's last image, which ends one token before the sequence does."""
    tokens = codes_BN.shape[1]
    filled = []
    for sequence, codes_N in zip(sequences, codes_BN, strict=True):
        ids_L = sequence.ids_L.clone()
        ids_L[-1 - tokens : -1] = codes_N + vocabulary.image_offset
        filled.append(replace(sequence, ids_L=ids_L))
    ends = torch.tensor([len(s) for s in sequences]).cumsum(0)
    rows_BN = ends[:, None] - 1 - tokens + torch.arange(tokens)
    return _packed_logits(model, vocabulary, filled, rows_BN.flatten()).unflatten(0, rows_BN.shape)


def grown(sequence: Sequence, token: int) -> Sequence:
    """The sequence with one more causal token."""
    positions = sequence.position_ids_L
    if positions is not None:
        positions = torch.cat([positions, positions[-1:] + 1])
    return replace(
        sequence,
        ids_L=torch.cat([sequence.ids_L, torch.tensor([token])]),
        spans=[*sequence.spans, Span(1)],
        position_ids_L=positions,
    )


def greedy(
    model: ShowO, vocabulary: Vocabulary, sequences: list[Sequence], tokens: int
) -> list[list[int]]:
    """The most likely continuation of each sequence, end mark left out."""
    found: list[list[int]] = []
    for sequence in sequences:
        answer: list[int] = []
        while len(answer) < tokens:
            token = int(last_logits(model, vocabulary, [sequence]).argmax())
            if token == vocabulary.eos:
                break
            answer.append(token)
            sequence = grown(sequence, token)
        found.append(answer)
    return found
