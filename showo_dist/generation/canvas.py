"""The picture at the end of a sequence: everything before it is read once, it itself anew every round."""

from dataclasses import replace

import torch
from torch import Tensor

from showo_dist.generation.cache import PrefixCache
from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, Vocabulary
from showo_kernels import Span


def split_canvas(sequence: Sequence, tokens: int) -> tuple[Sequence, Tensor, int]:
    """Cut a sequence before the bidirectional span that holds its last picture.

    No row before that span sees it, so the keys and values of those rows are the same in every round. What
    stands behind it (the causal eoi of CLIP reconstruction) is not seen by the picture, and left out.

    Args:
        sequence: as the builders of t2i and reconstruction make it.
        tokens: image tokens N of the picture.

    Returns:
        The prefix, the ids of the span, and the row of the first image token in it.
    """
    spans = list(sequence.spans)
    while not spans[-1].bidirectional:
        spans.pop()
    *before, canvas = spans
    start = sum(span.length for span in before)
    ids_Q = sequence.ids_L[start : start + canvas.length]
    frame = canvas.length - tokens  # soi and eoi, where they belong to the span
    assert frame in (0, 2) and not canvas.is_global and start > 0
    return _beginning(sequence, before, start), ids_Q, frame // 2


def _beginning(sequence: Sequence, spans: list[Span], length: int) -> Sequence:
    """The first ``length`` tokens, which ``spans`` cover; none of them is supervised."""
    positions = sequence.position_ids_L
    if positions is not None:
        positions = positions[:length]
    return replace(
        sequence,
        ids_L=sequence.ids_L[:length],
        spans=spans,
        position_ids_L=positions,
        label_rows_P=sequence.label_rows_P[:0],
        targets_P=sequence.targets_P[:0],
        weights_P=None,
    )


class Canvas:
    """The pictures of a batch, of one size, behind prefixes of any length.

    Args:
        model: in eval mode.
        vocabulary: the model's ids.
        sequences: X sequences that end with their picture; halves of guidance are sequences like any other.
        tokens: image tokens N of a picture.
    """

    def __init__(
        self, model: ShowO, vocabulary: Vocabulary, sequences: list[Sequence], tokens: int
    ) -> None:
        parts = [split_canvas(sequence, tokens) for sequence in sequences]
        device = next(model.parameters()).device
        self._offset, self._first = vocabulary.image_offset, parts[0][2]
        self.ids_XQ = torch.stack([ids_Q for _, ids_Q, _ in parts]).to(device)
        count, rows = self.ids_XQ.shape
        self._cache = PrefixCache(
            model, vocabulary, [prefix for prefix, _, _ in parts], room=rows, rows=rows
        )
        places_N = torch.arange(tokens, device=device) + self._first
        self._logit_rows = (torch.arange(count, device=device)[:, None] * rows + places_N).flatten()
        self._tokens = tokens

    def logits(self, codes_BN: Tensor, ids: slice = slice(None)) -> Tensor:
        """Logits (X, N, ids) of pictures that hold ``codes_BN``; X is a multiple of B."""
        image = slice(self._first, self._first + self._tokens)
        copies = len(self.ids_XQ) // len(codes_BN)
        self.ids_XQ[:, image] = (codes_BN + self._offset).repeat(copies, 1)
        logits = self._cache.extend(self.ids_XQ, self._logit_rows, ids)
        self._cache.forget()
        return logits.unflatten(0, (len(self.ids_XQ), self._tokens))
