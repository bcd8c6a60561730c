"""Micro-batches of samples to packed batches on the device, with the accounts of what was read."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from showo_data import BadSamples, Loader, MicroBatch
from showo_dist.sequences import PackedBatch, pack
from showo_dist.training.tasks import SequenceMaker


@dataclass
class Account:
    """What one optimizer step read on this rank.

    Attributes:
        samples: samples packed.
        wait_s: seconds spent reading, encoding and packing.
        masking: masking rates of the samples by flow.
    """

    samples: int = 0
    wait_s: float = 0.0
    masking: dict[str, list[float]] = field(default_factory=dict)


class PackedBatches:
    """Windows of packed micro-batches, one window per optimizer step.

    Args:
        loader: this rank's micro-batches.
        maker: samples to sequences.
        device: where the batches go.
        window: micro-steps per optimizer step.
        feature_width: of the model's understanding features.
        multiple_of: token count of a batch is rounded up to it.
        repeat_first: train on the first window for ever (``training.overfit_one_batch``).
    """

    def __init__(
        self,
        loader: Loader,
        maker: SequenceMaker,
        device: torch.device,
        window: int,
        feature_width: int,
        multiple_of: int,
        repeat_first: bool = False,
    ) -> None:
        self.loader, self.maker, self.device = loader, maker, device
        self.window, self.feature_width, self.multiple_of = window, feature_width, multiple_of
        self.bad = BadSamples()
        self.latest: MicroBatch | None = None
        self.window_read: list[MicroBatch] = []  # what the last window was made of
        self._micro_steps = 0
        self._iterator = self._windows(repeat_first)

    def __next__(self) -> tuple[list[PackedBatch], Account]:
        return next(self._iterator)

    def positions(self) -> dict[str, int]:
        """Next position of each flow's stream after the windows handed out so far."""
        return self.loader.positions_after(self._micro_steps)

    def _windows(self, repeat_first: bool) -> Iterator[tuple[list[PackedBatch], Account]]:
        batches = iter(self.loader)
        first: list[MicroBatch] | None = None
        while True:
            start, account = time.perf_counter(), Account()
            if first is None or not repeat_first:
                first = [next(batches) for _ in range(self.window)]
            self.window_read = first
            packed = [self._pack(batch, account) for batch in first]
            self._micro_steps += self.window
            account.wait_s = time.perf_counter() - start
            yield packed, account

    def _pack(self, batch: MicroBatch, account: Account) -> PackedBatch:
        self.bad.add(batch.skipped, good=sum(map(len, batch.samples.values())))
        self.latest = batch
        sequences = self.maker(batch)
        account.samples += len(sequences)
        for sequence in sequences:
            if sequence.masking_rate is not None:
                account.masking.setdefault(sequence.flow, []).append(sequence.masking_rate)
        packed = pack(
            sequences,
            pad_id=self.maker.vocabulary.pad,
            feature_width=self.feature_width,
            multiple_of=self.multiple_of,
        )
        return packed.to(self.device, non_blocking=True)
