"""Sequences of single samples, and packing those of a micro-batch, of every flow, end to end into one row."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showo_dist.config.flows import FLOWS
from showo_kernels import AttentionPlan, Span, Visibility, capacity, to_device


@dataclass
class Sequence:
    """The L tokens of one sample, without padding.

    Attributes:
        flow: one of :data:`FLOWS`, whose loss the labels belong to.
        ids_L: int64 token ids. Rows that hold features have the pad id, which is never looked up.
        spans: attention spans in order; their lengths add up to L.
        label_rows_P: int64 rows whose logits are supervised (shifted already where the task shifts).
        targets_P: int64 ids that these rows should predict.
        weights_P: float32 weight of each label; None means 1.
        position_ids_L: int64 rotary positions; None means 0, 1, 2 … Rotary attention depends on distances
            only, so omitting padding at either end changes nothing; where padding inside a sequence is
            omitted, the positions after it keep the gap.
        features_SC: CLIP features of the image in S rows from ``feature_start`` on, or None.
        feature_rows_S: int64 rows of the features when they are not contiguous (several images).
        frozen_inputs: no gradient flows into embeddings and features (``compat: reference``).
        masking_rate: fraction of the image tokens that are masked; None for tasks without masking.
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
        # A gap between spans would leave rows without any visibility.
        assert sum(span.length for span in self.spans) == len(self)
        assert len(self.label_rows_P) == len(self.targets_P)

    def __len__(self) -> int:
        return len(self.ids_L)


def image_first(sequence: Sequence) -> Sequence:
    """The same sequence with the rows of a global image before those in front of it.

    The order of rows is free: attention knows positions by their ids. In this one every row attends to
    contiguous keys, so ``flash`` copies few of them.
    """
    spans = sequence.spans
    if len(spans) < 2 or not spans[1].is_global or [s.is_global for s in spans].count(True) > 1:
        return sequence
    before, image, *behind = spans
    if before.bidirectional or not image.bidirectional:
        return sequence
    head, image_L, tail = torch.arange(len(sequence)).tensor_split(
        [before.length, before.length + image.length]
    )
    order_L = torch.cat([image_L, head, tail])
    place_L = order_L.argsort()
    rows_S = sequence.feature_rows_S
    return replace(
        sequence,
        ids_L=sequence.ids_L[order_L],
        spans=[Span(image.length, bidirectional=True, ahead=before.length), before, *behind],
        label_rows_P=place_L[sequence.label_rows_P],
        position_ids_L=_positions(sequence)[order_L],
        feature_start=0,
        feature_rows_S=None if rows_S is None else place_L[rows_S],
    )


# Training rounds T and P up to a multiple of this, so that few different shapes occur: kernels compiled per
# shape are reused, and oneDNN, which caches a kernel per shape forever, keeps few of them.
TOKEN_MULTIPLE = 128


@dataclass
class PackedBatch:
    """One micro-batch in one row of T tokens, F of them feature rows, with P labels over all flows.

    Attributes:
        ids_N: int64 token ids of the N = T - F rows that the embedding table fills.
        id_rows_N: int64 rows of these ids.
        features_FC: CLIP features of all images; (0, C) without images.
        feature_rows_F: int64 rows of these features.
        position_ids_T: int64 rotary positions.
        visibility: attention visibility of the T tokens; sequences never see each other.
        keep_grad_T: bool, False where inputs carry no gradient; None when all of them do.
        label_rows_P: int64 rows whose logits are supervised.
        targets_P: int64 ids that these rows should predict.
        label_flow_P: int64 index into :data:`FLOWS`.
        label_weights_P: float32 weights; 0 for labels added to reach a multiple.
        real_tokens: tokens of the sequences themselves, without padding of the row.
        labels: labels with a weight above 0.
        plan: attention over the row, built with the batch; None: the model's forward builds it.
    """

    ids_N: Tensor
    id_rows_N: Tensor
    features_FC: Tensor
    feature_rows_F: Tensor
    position_ids_T: Tensor
    visibility: Visibility
    keep_grad_T: Tensor | None
    label_rows_P: Tensor
    targets_P: Tensor
    label_flow_P: Tensor
    label_weights_P: Tensor
    real_tokens: int
    labels: int = 0
    plan: AttentionPlan | None = None

    @property
    def tokens(self) -> int:
        return len(self.position_ids_T)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Copy the tensors to a device, without waiting. The visibility stays on the CPU, where attention is
        planned."""
        device = torch.device(device)
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            moved[item.name] = to_device(value, device) if isinstance(value, Tensor) else value
        return PackedBatch(**moved)

    def label_counts(self) -> Tensor:
        """Sum the label weights of each flow: float64 (len(FLOWS),), the denominators of the losses."""
        counts = torch.zeros(len(FLOWS), dtype=torch.float64, device=self.label_flow_P.device)
        return counts.index_add(0, self.label_flow_P, self.label_weights_P.double())


def pack(
    sequences: Seq[Sequence],
    *,
    pad_id: int,
    feature_width: int = 0,
    multiple_of: int = 1,
    steps: int = 0,
) -> PackedBatch:
    """Lay sequences end to end.

    Args:
        sequences: of any flows; may be empty.
        pad_id: id of the tokens that pad the row.
        feature_width: C of the model's CLIP features; 0 for a model without them.
        multiple_of: T and P are rounded up to a multiple of this.
        steps: T is one of so many capacities per octave (:func:`showo_kernels.capacity`), which are multiples
            of 128, instead of any multiple of ``multiple_of``; 0: it is not.
    """
    total = sum(len(s) for s in sequences)
    # Without any sequence padding alone is packed: the rank must still run every module, because the other
    # ranks wait for it in the collectives of those modules.
    missing = -total % multiple_of if total else multiple_of
    if steps:
        missing = capacity(max(total, 1), steps) - total
    sequences = [*sequences, _padding(missing, pad_id)] if missing else list(sequences)
    starts = _starts(sequences)
    ids_T = torch.cat([s.ids_L for s in sequences])
    labels = _labels(sequences, starts, multiple_of)
    feature_rows_F = _feature_rows(sequences, starts)
    looked_up_T = torch.ones(len(ids_T), dtype=torch.bool)
    looked_up_T[feature_rows_F] = False
    return PackedBatch(
        ids_N=ids_T[looked_up_T],
        id_rows_N=looked_up_T.nonzero().flatten(),
        features_FC=_features(sequences, feature_width),
        feature_rows_F=feature_rows_F,
        position_ids_T=torch.cat([_positions(s) for s in sequences]),
        visibility=Visibility.from_documents([s.spans for s in sequences]),
        keep_grad_T=_keep_grad(sequences),
        **labels,
        real_tokens=total,
        labels=int((labels["label_weights_P"] > 0).sum()),
    )


def _padding(length: int, pad_id: int) -> Sequence:
    """A sequence of its own without labels, so that no other token sees the padding."""
    return Sequence("lm", torch.full((length,), pad_id), [Span(length)])


def _starts(sequences: Seq[Sequence]) -> list[int]:
    """Row of the packed batch at which each sequence begins."""
    starts, total = [], 0
    for sequence in sequences:
        starts.append(total)
        total += len(sequence)
    return starts


def _feature_rows(sequences: Seq[Sequence], starts: Seq[int]) -> Tensor:
    rows = [
        _own_feature_rows(s, len(s.features_SC)) + start
        for s, start in zip(sequences, starts, strict=True)
        if s.features_SC is not None
    ]
    return torch.cat([torch.empty(0, dtype=torch.int64), *rows])


def _own_feature_rows(sequence: Sequence, count: int) -> Tensor:
    """Rows of the features, counted from the begin of their own sequence."""
    if sequence.feature_rows_S is not None:
        return sequence.feature_rows_S
    return torch.arange(count) + sequence.feature_start


def _features(sequences: Seq[Sequence], feature_width: int) -> Tensor:
    present = [s.features_SC for s in sequences if s.features_SC is not None]
    return torch.cat(present) if present else torch.zeros(0, feature_width)


def _positions(sequence: Sequence) -> Tensor:
    """Rotary positions; every sequence counts from 0, wherever it lies in the row."""
    return (
        torch.arange(len(sequence)) if sequence.position_ids_L is None else sequence.position_ids_L
    )


def _keep_grad(sequences: Seq[Sequence]) -> Tensor | None:
    if not any(s.frozen_inputs for s in sequences):
        return None  # the usual case; the model then skips the masking of gradients
    return torch.cat([torch.full((len(s),), not s.frozen_inputs) for s in sequences])


def _labels(sequences: Seq[Sequence], starts: Seq[int], multiple_of: int) -> dict[str, Any]:
    """The label tensors of :class:`PackedBatch`, padded to the multiple."""
    counts = [len(s.label_rows_P) for s in sequences]
    flows = torch.tensor([FLOWS.index(s.flow) for s in sequences])
    weights = [
        torch.ones(count) if s.weights_P is None else s.weights_P
        for s, count in zip(sequences, counts, strict=True)
    ]
    labels = {
        "label_rows_P": torch.cat(
            [s.label_rows_P + start for s, start in zip(sequences, starts, strict=True)]
        ),
        "targets_P": torch.cat([s.targets_P for s in sequences]),
        "label_flow_P": flows.repeat_interleave(torch.tensor(counts)),
        "label_weights_P": torch.cat(weights),
    }
    # Padding with zeros makes labels of row 0, flow 0 and weight 0: they add nothing to sums and counts.
    missing = -sum(counts) % multiple_of
    return {name: F.pad(tensor, (0, missing)) for name, tensor in labels.items()}
