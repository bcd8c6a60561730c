"""What happened between two lines of metrics."""

import time

import torch
from torch import Tensor

from showo_dist.runtime.ranks import Ranks


class Window:
    """Sums over the steps between two lines of metrics."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.terms: dict[str, Tensor] = {}
        self.steps = 0
        self.waited_s = 0.0

    def add(self, terms: dict[str, Tensor], share: float) -> None:
        """Add this rank's ``share`` (of the global batch) of the terms."""
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0) + value.detach() * share
        self.steps += 1

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Means over all ranks and steps; collective."""
        sums = ranks.sum(torch.stack(list(self.terms.values())))
        return dict(zip(self.terms, (sums / self.steps).tolist(), strict=True))
