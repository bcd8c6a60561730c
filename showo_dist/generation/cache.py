"""Key and value cache of a batch of sequences of different lengths."""

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


class _PreallocatedLayer(DynamicLayer):
    """A cache layer that writes into preallocated tensors instead of copying all keys for each new token.

    Args:
        room: keys and values (B, H, capacity, D).
        filled: columns that hold keys already.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: tuple[Tensor, Tensor], filled: int) -> None:
        super().__init__()
        self.lazy_initialization(*room)
        self._room = room
        self._set_filled(filled)

    def _set_filled(self, filled: int) -> None:
        self.keys, self.values = (x_BHKD[:, :, :filled] for x_BHKD in self._room)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the packed rows (1, H, B·Q, D) of B sequences; return all keys and values (B, H, K, D)."""
        batch, start = self.keys.shape[0], self.keys.shape[2]
        stop = start + key_states.shape[2] // batch
        assert stop <= self._room[0].shape[2], "more tokens than there is room for"
        for room_BHKD, new_1HTD in zip(self._room, (key_states, value_states), strict=True):
            new_BHQD = new_1HTD[0].unflatten(1, (batch, -1)).transpose(0, 1)
            room_BHKD[:, :, start:stop] = new_BHQD
        self._set_filled(stop)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences, int64 indices (B,)."""
        filled = self.keys.shape[2]
        keys_BHKD, values_BHKD = self._room
        self._room = keys_BHKD[indices], values_BHKD[indices]
        self._set_filled(filled)


class PrefixCache:
    """The keys and values of B sequences, computed once; the same number of rows is then appended to each.

    Prefixes are aligned at their ends: the last token of each is in the same column, and the columns before a
    shorter one are empty. So new rows have the same columns in all sequences.

    Args:
        model: in eval mode.
        vocabulary: the model's ids.
        prefixes: the beginnings of the sequences, of any lengths and spans. They must not attend to what
            follows: later causal text and image spans are allowed, a later global span is not.
        room: rows that will be appended to each.
        rows: rows per call of :meth:`extend`, Q: 1 for text, the whole span of an image for generation.
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
        """Logits (B, V) of each prefix's last row: they predict the first token of an answer."""
        capacity = max(lengths) + room
        self._layers = [_unpacked(layer, lengths, capacity) for layer in packed.layers]
        self._kept = DynamicCache()
        self._kept.layers = list(self._layers)
        self._plan = CachedPlan.build(lengths, rows, capacity, self.device)
        self._positions_B = torch.tensor([_next_position(p) for p in prefixes], device=self.device)

    def __len__(self) -> int:
        """The number of sequences, B."""
        return len(self._positions_B)

    @torch.no_grad()
    def extend(
        self, ids_BQ: Tensor, logit_rows: Tensor | None = None, logit_ids: slice = slice(None)
    ) -> Tensor:
        """Append Q rows to every sequence and return their logits (rows, ids).

        Args:
            ids_BQ: token ids, on the model's device.
            logit_rows: int64 rows of the flattened B·Q to compute logits for; None: all.
            logit_ids: the part of the vocabulary to compute logits for.
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
        """Remove the rows of the last :meth:`extend`."""
        for layer in self._layers:
            layer.crop(-self._rows)
        self._positions_B = self._positions_B - self._rows

    def keep(self, sequences: list[int]) -> None:
        """Drop all sequences except these indices."""
        chosen = torch.tensor(sequences, device=self.device)
        self._kept.batch_select_indices(chosen)
        self._positions_B = self._positions_B[chosen]
        self._plan = self._plan.only(sequences)


def _next_position(prefix: Sequence) -> int:
    """Return the position id of the token after a prefix."""
    positions = prefix.position_ids_L
    return len(prefix) if positions is None else int(positions[-1]) + 1


def _unpacked(packed: Any, lengths: list[int], capacity: int) -> _PreallocatedLayer:
    """Unpack a layer's keys and values into one row per sequence, with room for new columns."""
    keys_BHKD, values_BHKD = (
        _aligned(x_1HTD, lengths, capacity) for x_1HTD in (packed.keys, packed.values)
    )
    return _PreallocatedLayer((keys_BHKD, values_BHKD), max(lengths))


def _aligned(packed_1HTD: Tensor, lengths: list[int], capacity: int) -> Tensor:
    """Unpack (1, H, T, D) into (B, H, capacity, D); every sequence ends before column ``max(lengths)``."""
    longest = max(lengths)
    parts = packed_1HTD[0, :, : sum(lengths)].split(lengths, dim=1)
    return torch.stack([F.pad(x, (0, 0, longest - x.shape[1], capacity - longest)) for x in parts])


def _rows_batch(
    ids_T: Tensor, index_T: Tensor, positions_T: Tensor, feature_width: int
) -> PackedBatch:
    """Make a batch without labels and features; the :class:`CachedPlan` holds the attention visibility."""
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
