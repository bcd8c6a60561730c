"""Keys and values of what a batch of sequences begins with, kept from step to step."""

from collections.abc import Sequence as Seq
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from showo_dist.models.showo import ShowO
from showo_dist.sequences import PackedBatch, Sequence, Vocabulary, pack
from showo_kernels import CachedPlan, Visibility


class _RoomyLayer(DynamicLayer):
    """A layer that writes into room made beforehand instead of copying everything for each new token.

    Args:
        room: keys and values (B, H, capacity, D).
        filled: columns that hold something.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: tuple[Tensor, Tensor], filled: int) -> None:
        super().__init__()
        self.lazy_initialization(*room)
        self._room = room
        self._show(filled)

    def _show(self, filled: int) -> None:
        self.keys, self.values = (x_BHKD[:, :, :filled] for x_BHKD in self._room)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the packed rows (1, H, B·Q, D) of B sequences; all keys and values (B, H, K, D)."""
        batch, start = self.keys.shape[0], self.keys.shape[2]
        stop = start + key_states.shape[2] // batch
        assert stop <= self._room[0].shape[2], "more tokens than room was made for"
        for room_BHKD, new_1HTD in zip(self._room, (key_states, value_states), strict=True):
            new_BHQD = new_1HTD[0].unflatten(1, (batch, -1)).transpose(0, 1)
            room_BHKD[:, :, start:stop] = new_BHQD
        self._show(stop)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        filled = self.keys.shape[2]
        keys_BHKD, values_BHKD = self._room
        self._room = keys_BHKD[indices], values_BHKD[indices]
        self._show(filled)


class PrefixCache:
    """B sequences that have been read once; more rows follow, as many for each of them.

    Args:
        model: in eval mode.
        vocabulary: the model's ids.
        prefixes: what the sequences begin with, of any lengths and spans. What follows must not be seen by
            it: causal text and an image's span are not, a later global span would be.
        room: rows that will follow each.
        rows: how many of them at a time: 1 for text, an image's whole span for generation.
    """

    @torch.no_grad()
    def __init__(
        self, model: ShowO, vocabulary: Vocabulary, prefixes: Seq[Sequence], room: int, rows: int
    ) -> None:
        self.model, self._rows = model, rows
        lengths = [len(prefix) for prefix in prefixes]
        self.device = next(model.parameters()).device
        batch = pack(
            prefixes,
            pad_id=vocabulary.pad,
            feature_width=model.feature_width,
            multiple_of=model.token_multiple,
        )
        packed = DynamicCache()
        last_B = torch.tensor(lengths).cumsum(0) - 1
        self.last_logits_BV = model(
            batch.to(self.device), logit_rows=last_B.to(self.device), cache=packed
        )
        """Logits (B, V) of each prefix's last row: what the first token of a text is drawn from."""
        capacity = max(lengths) + room
        self._layers = [_roomy(layer, lengths, capacity) for layer in packed.layers]
        self._kept = DynamicCache()
        self._kept.layers = list(self._layers)
        self._plan = CachedPlan.build(lengths, rows, capacity, self.device)
        self._positions_B = torch.tensor([_next_position(p) for p in prefixes], device=self.device)

    def __len__(self) -> int:
        """B."""
        return len(self._positions_B)

    @torch.no_grad()
    def extend(
        self, ids_BQ: Tensor, logit_rows: Tensor | None = None, logit_ids: slice = slice(None)
    ) -> Tensor:
        """Append rows and return their logits.

        Args:
            ids_BQ: token ids, on the model's device.
            logit_rows: int64 rows of the flattened B·Q whose logits are wanted; None: all.
            logit_ids: the part of the vocabulary that they are wanted of.
        """
        count = ids_BQ.numel()
        index_T = torch.arange(count, device=self.device)
        offsets_Q = torch.arange(self._rows, device=self.device)
        positions_T = (self._positions_B[:, None] + offsets_Q).flatten()
        logits = self.model(
            _rows_batch(ids_BQ.flatten(), index_T, positions_T, self.model.feature_width),
            logit_rows=index_T if logit_rows is None else logit_rows,
            logit_ids=logit_ids,
            cache=self._kept,
            plan=self._plan,
        )
        self._positions_B = self._positions_B + self._rows
        return logits

    def forget(self) -> None:
        """Take the last appended rows back."""
        for layer in self._layers:
            layer.crop(-self._rows)
        self._positions_B = self._positions_B - self._rows

    def keep(self, sequences: list[int]) -> None:
        """Go on with some of the sequences only."""
        chosen = torch.tensor(sequences, device=self.device)
        self._kept.batch_select_indices(chosen)
        self._positions_B = self._positions_B[chosen]
        self._plan = self._plan.only(sequences)


def _next_position(prefix: Sequence) -> int:
    positions = prefix.position_ids_L
    return len(prefix) if positions is None else int(positions[-1]) + 1


def _roomy(packed: Any, lengths: list[int], capacity: int) -> _RoomyLayer:
    """A layer's packed keys and values, sequence by sequence, with room behind them."""
    keys_BHKD, values_BHKD = (
        _aligned(x_1HTD, lengths, capacity) for x_1HTD in (packed.keys, packed.values)
    )
    return _RoomyLayer((keys_BHKD, values_BHKD), max(lengths))


def _aligned(packed_1HTD: Tensor, lengths: list[int], capacity: int) -> Tensor:
    """Packed rows of all sequences to (B, H, capacity, D): each ends in column ``max(lengths)``."""
    longest = max(lengths)
    parts = packed_1HTD[0, :, : sum(lengths)].split(lengths, dim=1)
    return torch.stack([F.pad(x, (0, 0, longest - x.shape[1], capacity - longest)) for x in parts])


def _rows_batch(
    ids_T: Tensor, index_T: Tensor, positions_T: Tensor, feature_width: int
) -> PackedBatch:
    """Rows without labels and features; who sees whom is the plan's matter."""
    none = index_T[:0]
    return PackedBatch(
        ids_N=ids_T,
        id_rows_N=index_T,
        features_FC=torch.zeros(0, feature_width, device=ids_T.device),
        feature_rows_F=none,
        position_ids_T=positions_T,
        visibility=Visibility.from_documents([]),
        keep_grad_T=None,
        label_rows_P=none,
        targets_P=none,
        label_flow_P=none,
        label_weights_P=none.float(),
        real_tokens=len(ids_T),
    )
