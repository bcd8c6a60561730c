"""Read the stored members of a flow's samples, before decoding, in one of two orders.

* Exact (:class:`ExactReader`): every sample once per epoch. The place of a position is arithmetic (see
  :mod:`showo_data.streams`), and members are read by their byte offset in the shard's index.
* Resampled (:class:`ResampledReader`), as published: webdataset draws shards with replacement; they are read
  from front to back, without an index. There are no epochs. A resumed run, or another number of ranks or
  workers, gets other samples.
"""

import os
import random
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

import webdataset

from showo_data.members import BadSampleError, Reader
from showo_data.samples import FlowSpec
from showo_data.shards import (
    DAMAGED,
    LINK,
    SPARSE,
    Member,
    NotATarError,
    OpenShards,
    ShardHeader,
    ShardTable,
    expand,
    load_index,
    open_whole,
    refuse_foreign,
    refuse_without_samples,
    samples_of,
    scan,
)
from showo_data.streams import CanonicalStream, MixedStream, part_seed

# Draws per shard without a sample before reading counts an "empty-shard".
_PATIENCE = 20


@dataclass(frozen=True, slots=True)
class RawSample:
    """A stored sample, whose members are read on demand.

    Attributes:
        shard: path or URL of the shard.
        key: of the sample; empty if it could not be read.
        read: returns the bytes of the member with an extension; raises as :func:`sample_reader`.
        reason: why the sample cannot be read, as a short code; None if it can.
        samples: how many samples of a lost shard it stands for.
        detail: of a shard that is no tar, what it is and what to do.
    """

    shard: str
    key: str
    read: Reader
    reason: str | None = None
    samples: int = 1
    detail: str = ""


class RawReader(Protocol):
    """The stored samples of a flow by position."""

    def read(self, position: int) -> RawSample:
        """Return the sample at ``position`` ≥ 0."""
        ...

    def __len__(self) -> int:
        """Samples in one epoch; 0 without epochs."""
        ...


def nothing(extension: str) -> None:
    """Read no member: the reader of a sample that cannot be read."""


def reason_of(error: OSError) -> str:
    """Return the reason, a short code, for an error of a shard."""
    return str(getattr(error, "reason", "unreadable-shard"))


def sample_reader(files: OpenShards, shard: str, index: int) -> Reader:
    """Return a function that reads the members of sample number ``index`` of a shard by their extension.

    Raises:
        BadSampleError: the sample marks a damaged part of the shard, or two members have the same extension.
            From the returned function: the member is stored sparse, is a link without its file, or the shard
            ends inside it.
        OSError: the shard cannot be read; also from the returned function.
    """
    return _member_reader(
        files.table(shard).members(index), lambda member: files.read(shard, member)
    )


def _member_reader(stored: list[Member], bytes_of: Callable[[Member], bytes]) -> Reader:
    """Return the reader of a sample with the members ``stored``; raises as :func:`sample_reader`."""
    members = {member.extension: member for member in stored}
    if DAMAGED in members:
        raise BadSampleError("damaged-shard")
    if len(members) < len(stored):
        raise BadSampleError("duplicate-member")

    def read(extension: str) -> bytes | None:
        member = members.get(extension)
        if member is None:
            return None
        if member.size == SPARSE:
            raise BadSampleError("sparse-member")
        if member.size == LINK:
            raise BadSampleError("link-member")
        data = bytes_of(member)
        if len(data) < member.size:
            raise BadSampleError("truncated")
        return data

    return read


def _open_limit(spec: FlowSpec) -> int:
    """Return how many shards to keep open: those that all streams read at a time, and those that follow.

    Reading the index of one again for every sample costs 30 times the sample. A process may have a limited
    number of files, which all flows share.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(2 * spec.streams * len(spec.parts), files // 8))


class ExactReader:
    """Map from position to stored sample; shards are opened when a sample is read."""

    def __init__(self, spec: FlowSpec) -> None:
        """Load the index of every shard, and build those that are missing.

        Raises:
            OSError: a shard does not exist, or has no index and cannot be read.
            ValueError: a source holds no samples, or its weight is not possible.
        """
        self.shards: list[ShardHeader] = []
        streams = []  # the shards of all sources are numbered consecutively
        for number, part in enumerate(spec.parts):
            headers = load_index(part.urls, spec.storage)
            counts = [header.samples for header in headers]
            if not any(counts):
                raise ValueError(
                    f"flow {spec.flow!r}: the shards {list(part.urls)} hold no samples"
                )
            seed = part_seed(spec.seed, number)
            streams.append(CanonicalStream(counts, seed, spec.streams, spec.window))
            self.shards += headers
        self.stream = MixedStream(streams, [part.weight for part in spec.parts], spec.seed)
        self._files = OpenShards(_open_limit(spec), spec.storage, self.shards)

    def __len__(self) -> int:
        return self.stream.samples

    def extensions(self) -> tuple[str, ...]:
        """Return the extensions of all members in the first shard that holds samples."""
        first = next(shard.path for shard in self.shards if shard.samples)
        return self._files.table(first).extensions

    def read(self, position: int) -> RawSample:
        """Return the sample at ``position`` ≥ 0, with a reason if it cannot be read."""
        _, number, index = self.stream.locate(position)
        shard, key = self.shards[number].path, ""
        self._files.begin()
        try:
            key = self._files.table(shard).key(index)
            return RawSample(shard, key, sample_reader(self._files, shard, index))
        except BadSampleError as bad:
            return RawSample(shard, key, nothing, str(bad))
        except OSError as error:
            return RawSample(shard, key, nothing, reason_of(error))


def _read_now(shard: str, stream: BinaryIO, table: ShardTable, index: int) -> RawSample:
    """Read all members of a sample from an open shard, for when the shard is closed."""
    stored, end = table.members(index), os.fstat(stream.fileno()).st_size
    contents = {}
    for member in stored:
        stream.seek(member.offset)
        # A size beyond the end is a damaged header's, and may be more than the memory.
        contents[member] = stream.read(max(0, min(member.size, end - member.offset)))
    try:
        return RawSample(shard, table.key(index), _member_reader(stored, contents.__getitem__))
    except BadSampleError as bad:
        return RawSample(shard, table.key(index), nothing, str(bad))


class ResampledReader:
    """Return the next randomly drawn sample of this process, whatever the position."""

    def __init__(self, spec: FlowSpec) -> None:
        """Check the names of the shards.

        Raises:
            FileNotFoundError, ValueError: as :func:`showo_data.shards.expand`.
        """
        self._spec = spec
        self._parts = [expand(part.urls, spec.storage) for part in spec.parts]
        self._draws: Iterator[RawSample] | None = None
        self._whole = self._whole_samples = 0  # shards without a damaged part, and their samples

    def __len__(self) -> int:
        return 0

    def read(self, position: int) -> RawSample:
        """Return the next sample; the first position that a process reads is the seed of its draws.

        So the processes of a run, which begin at different positions, draw different samples.
        """
        if self._draws is None:
            self._draws = self._mixed(part_seed(self._spec.seed, 1 + position))
        return next(self._draws)

    def _mixed(self, seed: int) -> Iterator[RawSample]:
        """Draw a source by weight for every sample."""
        rng, weights = random.Random(seed), [part.weight for part in self._spec.parts]
        parts = [self._shuffled(shards, part_seed(seed, i)) for i, shards in enumerate(self._parts)]
        while True:
            yield next(rng.choices(parts, weights)[0])

    def _shuffled(self, shards: list[str], seed: int) -> Iterator[RawSample]:
        """Draw shards with replacement, and shuffle their samples in a buffer of ``window``."""
        rng = random.Random(seed)
        # worker_seed and deterministic: webdataset would otherwise add process id and time to the seed.
        drawn = webdataset.ResampledShards(
            shards, seed=seed, worker_seed=lambda: 0, deterministic=True
        )
        urls = (source["url"] for source in drawn)
        return iter(webdataset.shuffle(self._spec.window, rng=rng)(self._from(urls, len(shards))))

    def _from(self, urls: Iterator[str], shards: int) -> Iterator[RawSample]:
        """Yield the samples of one drawn shard after the other."""
        without = 0
        for url in urls:
            without += 1
            for sample in self._stored(url):
                without = 0
                yield sample
            # Reading must not last for ever where all shards are empty.
            if without == _PATIENCE * shards:
                without = 0
                yield RawSample(url, "", nothing, "empty-shard")

    def _stored(self, shard: str) -> Iterator[RawSample]:
        """Yield the samples of a shard; one with a reason stands for all that were lost with it."""
        read = 0
        try:
            with open_whole(shard, self._spec.storage) as stream:
                refuse_foreign(shard, stream)
                table, unnamed = scan(stream)
                refuse_without_samples(shard, stream, table, unnamed)
                lost = self._lost(shard, table)
                for index in range(len(table)):
                    sample = _read_now(shard, stream, table, index)
                    if sample.reason == "damaged-shard":
                        sample, lost = replace(sample, samples=lost), 1
                    read += 1
                    yield sample
        except (NotATarError, OSError) as error:
            reason, detail = "damaged-shard", str(error)
            if isinstance(error, OSError):
                reason, detail = reason_of(error), ""
            lost = max(1, self._expected(shard) - read)
            yield RawSample(shard, "", nothing, reason, lost, detail)

    def _lost(self, shard: str, table: ShardTable) -> int:
        """Return how many samples the first damaged part of a shard stands for; the others are one each."""
        if DAMAGED in table.extensions:
            return max(1, self._expected(shard) - len(table) + 1)
        self._whole, self._whole_samples = self._whole + 1, self._whole_samples + len(table)
        return 1

    def _expected(self, shard: str) -> int:
        """Return the samples of a shard by its index, or the mean of the shards read so far."""
        indexed = samples_of(shard, self._spec.storage)
        return self._whole_samples // max(1, self._whole) if indexed is None else indexed

    def __getstate__(self) -> dict[str, object]:
        # A generator cannot be pickled; a worker process begins its own draws.
        return {**self.__dict__, "_draws": None}
