"""Place unpadded sequences in the published padded layout, to compare every entry with the golden set."""

from dataclasses import dataclass

import torch
from torch import Tensor

from showo_dist.sequences import Sequence
from showo_kernels import Visibility

IGNORE = -100


@dataclass
class Padded:
    """One row: ids, labels before any shift, attention visibility; ``real_L`` is False at padding."""

    ids_L: Tensor
    labels_L: Tensor
    mask_LL: Tensor
    real_L: Tensor


def place(sequence: Sequence, length: int, pad: int, *, left: bool, shifted: bool) -> Padded:
    """Put a sequence at the right end (``left`` padding) or the left end of a row of ``length``.

    ``shifted``: the task predicts the next token, so a label is stored one place after its row.
    """
    positions = sequence.position_ids_L
    places = torch.arange(len(sequence)) if positions is None else positions.clone()
    if left:
        places = places + length - (int(places[-1]) + 1)
    ids, labels = torch.full((length,), pad), torch.full((length,), IGNORE)
    ids[places] = sequence.ids_L
    labels[places[sequence.label_rows_P + int(shifted)]] = sequence.targets_P
    mask = torch.zeros(length, length, dtype=torch.bool)
    mask[places[:, None], places[None, :]] = Visibility.from_documents([sequence.spans]).dense()
    real = torch.zeros(length, dtype=torch.bool)
    real[places] = True
    return Padded(ids, labels, mask, real)
