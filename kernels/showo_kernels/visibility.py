"""Attention visibility: which tokens attend to which in a packed row, as three numbers per token.

Letters: T tokens of the row, S spans, P tokens of padding, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from showo_kernels.transfer import moved

# Padding is cut into documents of at most this many tokens: causal attention over one long document
# would cost its length squared, over many short ones next to nothing.
PADDING_DOCUMENT = 128


@dataclass(frozen=True)
class Span:
    """``length`` consecutive tokens of one document with the same visibility.

    A token of a causal span attends to itself and to every earlier token of the document; a token of
    a ``bidirectional`` span attends to the rest of the span as well, and to ``ahead`` tokens behind it. Every
    token of the document, also an earlier one, attends to the tokens of an ``is_global`` span.

    Raises:
        ValueError: ``length`` is below 1.
    """

    length: int
    bidirectional: bool = False
    is_global: bool = False
    ahead: int = 0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Span.length is {self.length}: a span holds at least one token")


@dataclass(frozen=True)
class Visibility:
    """Attention visibility of documents that are packed end to end into one row of T tokens.

    ``visible(q, k) = document[q] == document[k] and (k <= reach[q] or is_global[k])``: this one rule
    gives every mask of Show-o and RecA (arXiv 2408.12528, 2509.07295; docs/specification.md, section 4).

    Attributes:
        document_T: int32, non-decreasing: the document a token belongs to.
        reach_T: int32: index of the last token that a token attends to by position. It is the token's own
            index, or the last index of its bidirectional span; non-decreasing unless that span attends to
            tokens behind it, which ``flash`` and ``dense`` know.
        is_global_T: bool: every token of the document attends to this one.
    """

    document_T: Tensor
    reach_T: Tensor
    is_global_T: Tensor

    @classmethod
    def from_documents(cls, documents: Sequence[Sequence[Span]]) -> Visibility:
        """Pack ``documents``, each a list of spans, end to end; the tensors are on the CPU."""
        spans = [span for document in documents for span in document]
        length_S = torch.tensor([span.length for span in spans], dtype=torch.int64)
        owner_S = torch.tensor(
            [index for index, document in enumerate(documents) for _ in document],
            dtype=torch.int32,
        )
        full_S = torch.tensor([span.bidirectional for span in spans], dtype=torch.bool)
        global_S = torch.tensor([span.is_global for span in spans], dtype=torch.bool)
        ahead_S = torch.tensor([span.ahead for span in spans], dtype=torch.int64)
        last_S = (length_S.cumsum(0) - 1 + ahead_S).int()
        span_T = torch.repeat_interleave(torch.arange(len(spans)), length_S)
        index_T = torch.arange(span_T.numel(), dtype=torch.int32)
        reach_T = torch.where(full_S[span_T], last_S[span_T], index_T)
        return cls(owner_S[span_T], reach_T, global_S[span_T])

    def __len__(self) -> int:
        return self.document_T.numel()

    def to(self, device: torch.device | str) -> Visibility:
        """Return the same on ``device``; one copy, which does not block."""
        device = torch.device(device)
        if device == self.document_T.device:
            return self
        document_T, reach_T, is_global_T = moved(
            (self.document_T, self.reach_T, self.is_global_T), device
        )
        return Visibility(document_T, reach_T, is_global_T.bool())

    def between(self, rows_Q: Tensor, keys_K: Tensor) -> Tensor:
        """Evaluate the rule for queries ``rows_Q`` and keys ``keys_K`` (token indices): bool (Q, K)."""
        same_QK = self.document_T[rows_Q][:, None] == self.document_T[keys_K]
        return same_QK & ((keys_K <= self.reach_T[rows_Q][:, None]) | self.is_global_T[keys_K])

    def dense(self) -> Tensor:
        """Evaluate the rule for all pairs: bool (T, T), rows are queries. For tests and small inputs."""
        index_T = torch.arange(len(self), device=self.document_T.device)
        return self.between(index_T, index_T)

    def pairs(self) -> int:
        """Count the visible (query, key) pairs, without a T×T matrix."""
        document_T, reach_T = self.document_T.long(), self.reach_T.long()
        if not len(self):
            return 0
        _, lengths = torch.unique_consecutive(document_T, return_counts=True)
        ends_T = lengths.cumsum(0).repeat_interleave(lengths)
        starts_T = ends_T - lengths.repeat_interleave(lengths)
        globals_to = torch.cat([lengths.new_zeros(1), self.is_global_T.long().cumsum(0)])
        later_T = globals_to[ends_T] - globals_to[reach_T + 1]
        return int((reach_T + 1 - starts_T + later_T).sum())

    def pad_to(self, capacity: int) -> Visibility:
        """Append causal padding documents up to ``capacity`` tokens.

        A padding token attends to itself at least, so no softmax is empty and none becomes NaN; no
        token of a document attends to padding. The same capacity in every step, a multiple of 128,
        keeps compiled kernels from recompiling.

        Raises:
            ValueError: the documents hold more than ``capacity`` tokens.
        """
        size = len(self)
        if capacity < size:
            raise ValueError(f"capacity is {capacity}, but the documents hold {size} tokens")
        device = self.document_T.device
        index_P = torch.arange(size, capacity, device=device, dtype=torch.int32)
        # Cut at multiples of the block size of FlexAttention: padding is then visible in diagonal
        # blocks only.
        order_P = index_P // PADDING_DOCUMENT - size // PADDING_DOCUMENT
        first = int(self.document_T[-1]) + 1 if size else 0
        return Visibility(
            torch.cat([self.document_T, first + order_P]),
            torch.cat([self.reach_T, index_P]),
            torch.cat([self.is_global_T, torch.zeros_like(index_P, dtype=torch.bool)]),
        )
