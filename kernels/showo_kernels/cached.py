"""Attention with a key-value cache, for generation: new rows of several sequences over their cached keys.

Letters: B sequences, Q new rows of each sequence, K cached columns, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CachedPlan:
    """Attention visibility of Q new rows for each of B sequences, whose cached keys are aligned at their end.

    A new row attends to all cached keys of its sequence and to all of its new rows: the bidirectional
    span of an image, or the one next token of a text. Sequences of equal length share one call without
    a mask. For Q = 1 all sequences share one masked call, since a call costs more than its arithmetic.

    Attributes:
        rows: Q.
        empty_B: unused columns before each sequence's first key.
        seen_BK: bool, the used columns; None when every sequence begins in column 0.
    """

    rows: int
    empty_B: list[int]
    seen_BK: Tensor | None

    @classmethod
    def build(
        cls, kept_B: list[int], rows: int, capacity: int, device: torch.device | str = "cpu"
    ) -> CachedPlan:
        """Plan for B sequences.

        Args:
            kept_B: cached keys of each sequence before its first new row.
            rows: new rows per sequence and step.
            capacity: keys that the longest sequence will have at the end.
            device: where attention will run.
        """
        # Keys end in the same column in all sequences, so new ones are appended to all at once.
        empty_B = [max(kept_B) - kept for kept in kept_B]
        if not any(empty_B):
            return cls(rows, empty_B, None)
        first_B1 = torch.tensor(empty_B)[:, None]
        return cls(rows, empty_B, (torch.arange(capacity) >= first_B1).to(device))

    def __len__(self) -> int:
        return self.rows * len(self.empty_B)

    def only(self, sequences: list[int]) -> CachedPlan:
        """Return the plan for a part of the sequences, by index."""
        seen_BK = None if self.seen_BK is None else self.seen_BK[sequences]
        return CachedPlan(self.rows, [self.empty_B[index] for index in sequences], seen_BK)

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute attention of one layer; returns (1, H, B·Q, D).

        Args:
            query_BHTD: (1, H, B·Q, D), the sequences' new rows end to end.
            key_BHTD, value_BHTD: (B, H or a divisor, K, D); those of the new rows are the last Q.
            scale: factor of the scores before softmax.
        """
        query_BHQD = query_BHTD[0].unflatten(1, (-1, self.rows)).transpose(0, 1)
        key_BHTD, value_BHTD = (x.to(query_BHTD.dtype) for x in (key_BHTD, value_BHTD))
        attend = self._at_once if self.rows == 1 else self._by_length
        out_BHQD = attend(query_BHQD, key_BHTD, value_BHTD, scale)
        return out_BHQD.transpose(0, 1).flatten(1, 2)[None]

    def _at_once(self, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, scale: float) -> Tensor:
        """One call for all sequences, with a mask over the unused columns."""
        seen = self.seen_BK
        mask = None if seen is None else seen[:, None, None, : k_BHKD.shape[2]]
        grouped = q_BHQD.shape[1] != k_BHKD.shape[1]
        return F.scaled_dot_product_attention(
            q_BHQD, k_BHKD, v_BHKD, attn_mask=mask, scale=scale, enable_gqa=grouped
        )

    def _by_length(self, q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, scale: float) -> Tensor:
        """One call without a mask for each group of neighbouring sequences of equal length."""
        grouped = q_BHQD.shape[1] != k_BHKD.shape[1]
        parts, start = [], 0
        for empty, group in groupby(self.empty_B):
            chosen = slice(start, start + len(list(group)))
            start = chosen.stop
            k, v = (x[chosen, :, empty:] for x in (k_BHKD, v_BHKD))
            parts.append(
                F.scaled_dot_product_attention(
                    q_BHQD[chosen], k, v, scale=scale, enable_gqa=grouped
                )
            )
        return torch.cat(parts)
