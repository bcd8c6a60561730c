"""All sequences of a micro-batch, of every flow, laid end to end in one row."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from showo_dist.sequences.sequence import FLOWS, Sequence
from showo_kernels import Span, Visibility


@dataclass
class PackedBatch:
    """One micro-batch in one row of T tokens, of which F hold features; P labels over all flows.

    Attributes:
        ids_N: int64 token ids of the T - F rows that are looked up in the embedding table.
        id_rows_N: int64 the row of each.
        features_FC: features of all images, or (0, C).
        feature_rows_F: int64 the row of each.
        position_ids_T: int64 rotary positions.
        visibility: who sees whom.
        keep_grad_T: bool, false where inputs carry no gradient; None when all do.
        label_rows_P, targets_P: int64 supervised rows and the ids wanted there.
        label_flow_P: int64 index into :data:`FLOWS`.
        label_weights_P: float32 weights; 0 for labels that only fill up.
        real_tokens: tokens of the sequences themselves, without what fills up.
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

    @property
    def tokens(self) -> int:
        return len(self.position_ids_T)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """The batch on a device; the visibility stays on the CPU, where attention is planned."""
        moved = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                value = value.to(device, non_blocking=non_blocking)
            moved[item.name] = value
        return PackedBatch(**moved)

    def label_counts(self) -> Tensor:
        """Labels of each flow, float64 (len(FLOWS),): the sum of the label weights."""
        counts = torch.zeros(len(FLOWS), dtype=torch.float64, device=self.label_flow_P.device)
        return counts.index_add(0, self.label_flow_P, self.label_weights_P.double())


def _starts(sequences: Seq[Sequence]) -> list[int]:
    starts, total = [], 0
    for sequence in sequences:
        starts.append(total)
        total += len(sequence)
    return starts


def _filler(length: int, pad_id: int) -> Sequence:
    """A sequence without labels: it fills the row up, or stands for a rank that has nothing."""
    return Sequence("lm", torch.full((length,), pad_id), [Span(length)])


def _feature_rows(sequences: Seq[Sequence], starts: Seq[int]) -> Tensor:
    rows = [
        _own_feature_rows(s, len(s.features_SC)) + start
        for s, start in zip(sequences, starts, strict=True)
        if s.features_SC is not None
    ]
    return torch.cat([torch.empty(0, dtype=torch.int64), *rows])


def _own_feature_rows(sequence: Sequence, count: int) -> Tensor:
    if sequence.feature_rows_S is not None:
        return sequence.feature_rows_S
    return torch.arange(count) + sequence.feature_start


def _features(sequences: Seq[Sequence], feature_width: int) -> Tensor:
    present = [s.features_SC for s in sequences if s.features_SC is not None]
    return torch.cat(present) if present else torch.zeros(0, feature_width)


def _keep_grad(sequences: Seq[Sequence]) -> Tensor | None:
    if not any(s.frozen_inputs for s in sequences):
        return None
    return torch.cat([torch.full((len(s),), not s.frozen_inputs) for s in sequences])


def _labels(sequences: Seq[Sequence], starts: Seq[int], multiple_of: int) -> dict[str, Tensor]:
    """Labels of all sequences, filled up with labels of weight 0 on the first row."""
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
    missing = -sum(counts) % multiple_of
    return {name: F.pad(tensor, (0, missing)) for name, tensor in labels.items()}


def pack(
    sequences: Seq[Sequence], *, pad_id: int, feature_width: int = 0, multiple_of: int = 1
) -> PackedBatch:
    """Lay sequences end to end.

    Args:
        sequences: of any flows; may be empty, then one token without label is packed so that the model
            still runs the same modules as on every other rank.
        pad_id: id of the tokens that fill the row up.
        feature_width: C of the model's understanding features, 0 for none.
        multiple_of: T and P are rounded up to it, so that shapes repeat: compiled kernels are found again.
    """
    total = sum(len(s) for s in sequences)
    missing = -total % multiple_of or (0 if total else 1)
    sequences = [*sequences, _filler(missing, pad_id)] if missing else list(sequences)
    starts = _starts(sequences)
    ids_T = torch.cat([s.ids_L for s in sequences])
    feature_rows = _feature_rows(sequences, starts)
    looked_up = torch.ones(len(ids_T), dtype=torch.bool)
    looked_up[feature_rows] = False
    return PackedBatch(
        ids_N=ids_T[looked_up],
        id_rows_N=looked_up.nonzero().flatten(),
        features_FC=_features(sequences, feature_width),
        feature_rows_F=feature_rows,
        position_ids_T=torch.cat([_positions(s) for s in sequences]),
        visibility=Visibility.from_documents([s.spans for s in sequences]),
        keep_grad_T=_keep_grad(sequences),
        **_labels(sequences, starts, multiple_of),
        real_tokens=total,
    )


def _positions(sequence: Sequence) -> Tensor:
    return (
        torch.arange(len(sequence)) if sequence.position_ids_L is None else sequence.position_ids_L
    )
