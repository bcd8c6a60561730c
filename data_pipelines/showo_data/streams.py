"""Canonical streams: position p of a flow names one sample, by arithmetic.

One epoch has N positions. Its shards are put in a seeded order; the samples of all shards, end to end in
that order, are cut into K pieces of nearly equal length, the streams. Position q of the epoch is entry
q // K of stream q % K, so neighbouring positions come from K different places. Inside a stream, entries are
shuffled within windows of W. Nothing depends on ranks or workers: rank r of w simply takes the positions
p ≡ r (mod w), and resuming at p costs nothing.

A mixture deals the positions of a flow to several such streams, in blocks: each block of 1000 positions
holds the same number of positions of each stream, in a seeded order. So how many positions a stream has had
before p is a product and one look-up, and each stream runs through its own samples in its own order, whatever
the weights.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_BLOCK = 1000  # positions; part of the order of every mixture


class Place(NamedTuple):
    """Where a position leads: the epoch, the number of the shard, and of the sample in it."""

    epoch: int
    shard: int
    sample: int


class CanonicalStream:
    """The endless order of the samples of one flow."""

    def __init__(
        self, counts_per_shard: Sequence[int], seed: int, streams: int = 8, window: int = 1000
    ) -> None:
        """``counts_per_shard``: samples of each shard, in the order the config lists them.

        Raises:
            ValueError: there is no sample at all, or ``streams`` or ``window`` is not positive.
        """
        if streams < 1 or window < 1:
            raise ValueError(f"streams and window must be at least 1, not {streams} and {window}")
        self.counts_S = np.asarray(counts_per_shard, dtype=np.int64)
        self.samples = int(self.counts_S.sum())
        if self.samples == 0:
            raise ValueError("the shards hold no samples")
        self.seed, self.streams, self.window = seed, streams, window
        self._counts = self.counts_S.tobytes()  # hashable: a key of the cache of orders

    def locate(self, position: int) -> Place:
        """The sample at ``position`` ≥ 0."""
        assert position >= 0, position
        epoch, q = divmod(position, self.samples)
        entry, stream = divmod(q, self.streams)
        rank = self._start(stream) + self._shuffled(epoch, stream, entry)
        order_S, ends_S = _order_of_shards(self.seed, epoch, self._counts)
        slot = int(np.searchsorted(ends_S, rank, side="right"))
        shard = int(order_S[slot])
        return Place(epoch, shard, rank - int(ends_S[slot] - self.counts_S[shard]))

    def _start(self, stream: int) -> int:
        """Where a stream begins in the epoch's list of samples."""
        length, longer = divmod(self.samples, self.streams)
        return stream * length + min(stream, longer)

    def _shuffled(self, epoch: int, stream: int, entry: int) -> int:
        """The place of ``entry`` inside its stream after the shuffle of its window."""
        length = self._start(stream + 1) - self._start(stream)
        number, offset = divmod(entry, self.window)
        first = number * self.window
        order = _permutation(
            f"window/{self.seed}/{epoch}/{stream}/{number}", min(self.window, length - first)
        )
        return first + int(order[offset])


class MixedStream:
    """The endless order of the samples of a flow with several weighted sources."""

    def __init__(
        self, streams: Sequence[CanonicalStream], weights: Sequence[float], seed: int
    ) -> None:
        """``weights`` are relative; shards are numbered through all streams.

        Raises:
            ValueError: a weight is negative, all are 0, or one is positive and less than a thousandth.
        """
        self.streams, self.seed = tuple(streams), seed
        self.quotas = _quotas(weights)
        counts = [len(stream.counts_S) for stream in streams]
        self._first_shard = [sum(counts[:i]) for i in range(len(counts))]

    @property
    def samples(self) -> int:
        """Samples of all streams that have a weight."""
        pairs = zip(self.streams, self.quotas, strict=True)
        return sum(stream.samples for stream, quota in pairs if quota)

    def deal(self, position: int) -> tuple[int, int]:
        """The stream that ``position`` belongs to, and the position within that stream."""
        block, offset = divmod(position, _BLOCK)
        stream_B, before_B = _dealt(f"mixture/{self.seed}/{block}", self.quotas)
        stream = int(stream_B[offset])
        return stream, block * self.quotas[stream] + int(before_B[offset])

    def locate(self, position: int) -> Place:
        """The sample at ``position`` ≥ 0."""
        stream, own_position = self.deal(position)
        place = self.streams[stream].locate(own_position)
        return place._replace(shard=place.shard + self._first_shard[stream])


def part_seed(seed: int, part: int) -> int:
    """Seed of the order of one source of a mixture; the first one has the order it would have alone."""
    if part == 0:
        return seed
    name = f"part/{seed}/{part}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "little")


def _quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Positions of each stream in a block: the weights' shares, rounded to make up the block."""
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"weights must be 0 or more, and not all 0: {list(weights)}")
    shares = [weight / sum(weights) * _BLOCK for weight in weights]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: quotas[i] - shares[i])
    for i in by_remainder[: _BLOCK - sum(quotas)]:
        quotas[i] += 1
    lost = [w for w, quota in zip(weights, quotas, strict=True) if w and not quota]
    if lost:
        raise ValueError(f"weight {lost[0]} of {list(weights)}: less than 1/{_BLOCK} of their sum")
    return tuple(quotas)


@lru_cache(maxsize=256)
def _dealt(name: str, quotas: tuple[int, ...]) -> tuple[Integers, Integers]:
    """The streams of the positions of a block, and how often each stream has come before in it."""
    order_B = _permutation(name, _BLOCK)
    sorted_B = np.repeat(np.arange(len(quotas)), quotas)
    before_B = np.empty(_BLOCK, dtype=np.int64)
    for quota, end in zip(quotas, np.cumsum(quotas), strict=True):
        places = np.sort(order_B[end - quota : end])
        before_B[places] = np.arange(quota)
    stream_B = np.empty(_BLOCK, dtype=np.int64)
    stream_B[order_B] = sorted_B
    return stream_B, before_B


@lru_cache(maxsize=32)
def _order_of_shards(seed: int, epoch: int, counts: bytes) -> tuple[Integers, Integers]:
    """The shards of an epoch in their order, and the running total of their samples."""
    counts_S = np.frombuffer(counts, dtype=np.int64)
    order_S = _permutation(f"shards/{seed}/{epoch}", len(counts_S))
    return order_S, np.cumsum(counts_S[order_S])


@lru_cache(maxsize=1024)
def _permutation(name: str, length: int) -> Integers:
    """A permutation of ``range(length)`` that depends on ``name`` alone, on every machine.

    Sorted raw words of Philox: NumPy guarantees a bit generator's words across its versions, which it does
    not for ``Generator.permutation``.
    """
    key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), dtype="<u8")
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")
