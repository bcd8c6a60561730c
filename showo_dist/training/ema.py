"""An exponential moving average of the weights (EMA), in fp32.

The averages are part of the optimizer's state, beside the moments: one tensor for each tensor that the
optimizer updates. So ZeRO 1 to 3 shards them as it shards the moments, checkpoints hold them by parameter
name, and at ZeRO-0 and in the torch engine, where nothing is sharded, every rank has all of them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from showo_dist.checkpoint.slices import EMA


class Ema:
    """Updates the averages in an optimizer's state.

    Args:
        decay: upper bound of the part of an average that one update keeps.
        weights: fp32 tensors that the optimizer updates.
        averages: as long and shaped alike.

    Attributes:
        updates: number of updates so far; the first ones keep less, (1 + updates) / (10 + updates).
    """

    def __init__(self, decay: float, weights: list[Tensor], averages: list[Tensor]) -> None:
        self.decay, self.weights, self.averages = decay, weights, averages
        self.updates = 0
        self._readers: list[Callable[[], None]] = []

    @classmethod
    def of(
        cls, optimizer: Optimizer, tensors: Iterable[Tensor], decay: float | None
    ) -> Self | None:
        """The averages in the state of an optimizer; None without a decay."""
        if decay is None:
            return None
        weights = list(tensors)
        return cls(decay, weights, [optimizer.state[tensor][EMA] for tensor in weights])

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights; once after each optimizer step that changed them."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self.weights, 1.0 - decay)
        self.updates += 1

    def before_exchange(self, action: Callable[[], None]) -> None:
        """Call ``action``, which waits for readers of weights and averages, before they change places."""
        self._readers.append(action)

    @contextmanager
    def in_place_of_weights(self, refresh: Callable[[], None]) -> Iterator[None]:
        """Inside, the averages are where the weights are, and the weights where the averages are.

        Args:
            refresh: copies the optimizer's weights to where the model computes with them; collective.
        """
        # A step that was skipped did not wait for a checkpoint's copy.
        for action in self._readers:
            action()
        self._exchange()
        refresh()
        # Not in a finally block: after an error on one rank, the others would wait in refresh for it.
        yield
        self._exchange()
        refresh()

    @torch.no_grad()
    def _exchange(self) -> None:
        # Values and not storages: the engine and its checkpoints have views of these tensors.
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
