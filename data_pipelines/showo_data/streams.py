"""Canonical streams: position p of a flow is one sample, found by arithmetic.

An epoch has as many positions as samples. Its shards are put in a seeded order; the samples of all shards,
concatenated in that order, are cut into ``streams`` pieces of nearly equal length. Position q of the epoch is
entry ``q // streams`` of stream ``q % streams``, so neighbouring positions come from different shards. Inside
a stream, entries are shuffled within windows of ``window``. Nothing depends on ranks or workers: rank r takes
the positions p ≡ r (mod world), and resuming at p needs no replay.

A mixture assigns the positions of a flow to several sources, each with a canonical stream, in blocks of 1000
positions. Every block holds the same number of positions of each source, in a seeded order. So the number of
positions that a source had before p is a product and one look-up, and no weight changes a source's order.

Letters: S shards, B positions of one block.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_BLOCK = 1000  # positions; another value changes the order of every mixture


class Place(NamedTuple):
    """The sample of a position: the epoch, the number of the shard, and the number of the sample in it."""

    epoch: int
    shard: int
    sample: int


class CanonicalStream:
    """The endless order of the samples of one source."""

    def __init__(
        self, counts_per_shard: Sequence[int], seed: int, streams: int = 8, window: int = 1000
    ) -> None:
        """Define the order.

        Args:
            counts_per_shard: samples of each shard, in the order of the config.
            seed: of the order.
            streams: pieces that an epoch is cut into.
            window: entries of a stream that are shuffled together.

        Raises:
            ValueError: there are no samples, or ``streams`` or ``window`` is below 1.
        """
        if streams < 1 or window < 1:
            raise ValueError(f"streams and window must be at least 1, not {streams} and {window}")
        self.counts_S = np.asarray(counts_per_shard, dtype=np.int64)
        self.samples = int(self.counts_S.sum())
        if self.samples == 0:
            raise ValueError("the shards hold no samples")
        self.seed, self.streams, self.window = seed, streams, window
        self._counts = self.counts_S.tobytes()  # hashable, for the cache of orders
        # Of each stream, the epoch and the number of the last window, and its order.
        self._windows: dict[int, tuple[int, int, npt.NDArray[np.uint32]]] = {}

    def locate(self, position: int) -> Place:
        """Return the sample at ``position`` ≥ 0."""
        assert position >= 0, position
        epoch, q = divmod(position, self.samples)
        entry, stream = divmod(q, self.streams)
        # Number in the epoch's concatenated list of samples; the running totals lead to the shard.
        number = self._start(stream) + self._shuffled(epoch, stream, entry)
        order_S, ends_S = _order_of_shards(self.seed, epoch, self._counts)
        # Methods of arrays: NumPy's functions, and its integers, cost as much as reading a sample.
        slot = int(ends_S.searchsorted(number, side="right"))
        shard = order_S.item(slot)
        return Place(epoch, shard, number - ends_S.item(slot) + self.counts_S.item(shard))

    def _start(self, stream: int) -> int:
        """Return where a stream begins in the epoch's list of samples."""
        # The first streams are one entry longer where the samples do not divide evenly.
        length, longer = divmod(self.samples, self.streams)
        return stream * length + min(stream, longer)

    def _shuffled(self, epoch: int, stream: int, entry: int) -> int:
        """Return the entry of the unshuffled stream that the shuffle of its window puts at ``entry``."""
        number, offset = divmod(entry, self.window)
        first = number * self.window
        window = self._windows.get(stream)
        if window is None or window[:2] != (epoch, number):
            length = min(self.window, self._start(stream + 1) - self._start(stream) - first)
            order = _permutation(f"window/{self.seed}/{epoch}/{stream}/{number}", length)
            window = self._windows[stream] = epoch, number, order.astype(np.uint32)
        return first + window[2].item(offset)


class MixedStream:
    """The endless order of the samples of a flow with several weighted sources (also a single one)."""

    def __init__(
        self, streams: Sequence[CanonicalStream], weights: Sequence[float], seed: int
    ) -> None:
        """Define the order.

        Args:
            streams: one per source; their shards are numbered consecutively.
            weights: relative, one per source.
            seed: of the order of the sources within a block.

        Raises:
            ValueError: a weight is negative, all are 0, or one is less than a thousandth of their sum.
        """
        self.streams, self.seed = tuple(streams), seed
        self.quotas = _quotas(weights)
        counts = [len(stream.counts_S) for stream in streams]
        self._first_shard = [sum(counts[:i]) for i in range(len(counts))]

    @property
    def samples(self) -> int:
        """Samples of all sources with a weight above 0."""
        pairs = zip(self.streams, self.quotas, strict=True)
        return sum(stream.samples for stream, quota in pairs if quota)

    def assign(self, position: int) -> tuple[int, int]:
        """Return the number of the source that ``position`` belongs to, and the position in its stream."""
        block, offset = divmod(position, _BLOCK)
        stream_B, before_B = _assignment(f"mixture/{self.seed}/{block}", self.quotas)
        stream = stream_B.item(offset)
        return stream, block * self.quotas[stream] + before_B.item(offset)

    def locate(self, position: int) -> Place:
        """Return the sample at ``position`` ≥ 0."""
        stream, own_position = self.assign(position)
        place = self.streams[stream].locate(own_position)
        return Place(place.epoch, place.shard + self._first_shard[stream], place.sample)


def part_seed(seed: int, part: int) -> int:
    """Return the seed of source number ``part``; the first source has the order it has without a mixture."""
    if part == 0:
        return seed
    name = f"part/{seed}/{part}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "little")


def _quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the positions of each source in a block: its share, rounded so that the sum is the block."""
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"weights must be 0 or more, and not all 0: {list(weights)}")
    shares = [weight / sum(weights) * _BLOCK for weight in weights]
    quotas = [int(share) for share in shares]
    # Largest remainder: the positions that rounding down leaves go to the largest fractions.
    by_remainder = sorted(range(len(shares)), key=lambda i: quotas[i] - shares[i])
    for i in by_remainder[: _BLOCK - sum(quotas)]:
        quotas[i] += 1
    lost = [w for w, quota in zip(weights, quotas, strict=True) if w and not quota]
    if lost:
        raise ValueError(f"weight {lost[0]} of {list(weights)}: less than 1/{_BLOCK} of their sum")
    return tuple(quotas)


@lru_cache(maxsize=256)
def _assignment(name: str, quotas: tuple[int, ...]) -> tuple[Integers, Integers]:
    """For each position of a block: its source, and how often that source came before in the block."""
    order_B = _permutation(name, _BLOCK)
    sorted_B = np.repeat(np.arange(len(quotas)), quotas)
    before_B = np.empty(_BLOCK, dtype=np.int64)
    for quota, end in zip(quotas, np.cumsum(quotas), strict=True):
        places = np.sort(order_B[end - quota : end])
        before_B[places] = np.arange(quota)
    stream_B = np.empty(_BLOCK, dtype=np.int64)
    stream_B[order_B] = sorted_B
    return stream_B, before_B


@lru_cache(maxsize=128)
def _order_of_shards(seed: int, epoch: int, counts: bytes) -> tuple[Integers, Integers]:
    """Return the shards of an epoch in their order, and the running totals of their samples."""
    counts_S = np.frombuffer(counts, dtype=np.int64)
    order_S = _permutation(f"shards/{seed}/{epoch}", len(counts_S))
    return order_S, np.cumsum(counts_S[order_S])


def _permutation(name: str, length: int) -> Integers:
    """Return a permutation of ``range(length)`` that depends on ``name`` alone, on every machine.

    It is the order of raw random words of Philox: NumPy guarantees these across its versions, but not the
    results of ``Generator.permutation``.
    """
    key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), dtype="<u8")
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")
