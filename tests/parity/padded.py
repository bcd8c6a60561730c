"""Our unpadded sequences in the published padded layout, to compare with the goldens entry by entry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from showo_dist.sequences import Sequence
from showo_kernels import Visibility

IGNORE = -100


@dataclass
class Padded:
    """One row: ids, labels before any shift, and who sees whom; ``real_L`` marks what is not padding."""

    ids_L: Tensor
    labels_L: Tensor
    mask_LL: Tensor
    real_L: Tensor


def place(sequence: Sequence, length: int, pad: int, *, left: bool, shifted: bool) -> Padded:
    """Put a sequence at the right (``left`` padding) or left end of a row of ``length``.

    ``shifted``: the task predicts the next token, so a label belongs one place after its row.
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
