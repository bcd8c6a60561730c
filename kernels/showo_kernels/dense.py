"""``dense`` backend: a (T, T) boolean matrix. The reference of the tests, never the default."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from showo_kernels.visibility import Visibility


@dataclass(frozen=True)
class DensePlan:
    """The attention visibility as a boolean (T, T) matrix, rows are queries."""

    visible_TT: Tensor

    @classmethod
    def build(cls, visibility: Visibility, device: torch.device) -> DensePlan:
        """Evaluate the rule for all pairs: T² bytes."""
        return cls(visibility.to(device).dense())

    def __len__(self) -> int:
        return self.visible_TT.shape[0]

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Compute masked softmax attention in fp32 or better; see :func:`showo_kernels.attend`."""
        dtype = torch.promote_types(query_BHTD.dtype, torch.float32)
        groups = query_BHTD.shape[1] // key_BHTD.shape[1]
        key_BHTD = key_BHTD.to(dtype).repeat_interleave(groups, dim=1)
        value_BHTD = value_BHTD.to(dtype).repeat_interleave(groups, dim=1)
        score_BHTT = query_BHTD.to(dtype) @ key_BHTD.transpose(-1, -2) * scale
        score_BHTT = score_BHTT.masked_fill(~self.visible_TT, float("-inf"))
        return (score_BHTT.softmax(-1) @ value_BHTD).to(query_BHTD.dtype)
