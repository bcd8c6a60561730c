"""One unpadded training or generation sequence."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from showo_kernels import Span

FLOWS = ("t2i", "lm", "mmu", "recon")


@dataclass
class Sequence:
    """Tokens of one sample, without padding.

    Attributes:
        flow: one of :data:`FLOWS`; names the loss that the labels count for.
        ids_L: int64 token ids; a place that holds a feature has the pad id, which is never looked up.
        spans: spans whose lengths add up to L, in order.
        label_rows_P: int64 positions whose logits are supervised (already shifted where the task shifts).
        targets_P: int64 ids wanted there.
        weights_P: float32 weight of each label, or None for 1.
        position_ids_L: rotary positions; None counts from 0. Only distances matter, so dropped padding
            at either end changes nothing; padding dropped inside a sequence keeps its places here.
        features_SC: understanding features of the image, or None; they fill the rows from
            ``feature_start`` on.
        feature_rows_S: their rows where they are several blocks (several images).
        frozen_inputs: input embeddings and features carry no gradient (``compat: reference``).
        masking_rate: share of image tokens masked, where the task masks.
    """

    flow: str
    ids_L: Tensor
    spans: list[Span]
    label_rows_P: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    targets_P: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights_P: Tensor | None = None
    position_ids_L: Tensor | None = None
    features_SC: Tensor | None = None
    feature_start: int = 0
    feature_rows_S: Tensor | None = None
    frozen_inputs: bool = False
    masking_rate: float | None = None

    def __post_init__(self) -> None:
        assert self.flow in FLOWS, self.flow
        assert sum(span.length for span in self.spans) == len(self)
        assert len(self.label_rows_P) == len(self.targets_P)

    def __len__(self) -> int:
        return len(self.ids_L)
