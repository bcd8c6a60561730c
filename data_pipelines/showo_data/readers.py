"""A sample as its shard stores it, before anything is decoded.

Exact sampling: every sample once per epoch, its place given by arithmetic.

Resampled reading, as published: webdataset's own endless draw of shards, with replacement.

Shards are read from front to back and need no index. There are no epochs; where a run goes on after a stop,
or on another number of ranks or loader processes, it goes on with other draws.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from showo_data.members import BadSampleError, Reader
from showo_data.samples import FlowSpec
from showo_data.shards import DAMAGED, OpenShards, ShardHeader, expand, load_index, open_whole
from showo_data.streams import CanonicalStream, MixedStream, part_seed


@dataclass(frozen=True, slots=True)
class RawSample:
    """Where a sample lies, and its bytes.

    Attributes:
        shard: its path or URL.
        key: of the sample; empty where it could not be read.
        read: gives the bytes of the member with an extension; raises as :func:`sample_reader` says.
        reason: why there is nothing to read; None where there is.
    """

    shard: str
    key: str
    read: Reader
    reason: str | None = None


class RawReader(Protocol):
    """Gives the samples of a flow."""

    def read(self, position: int) -> RawSample:
        """The sample at ``position`` ≥ 0."""
        ...

    def __len__(self) -> int:
        """Samples in one epoch; 0 where there are no epochs."""
        ...


def nothing(extension: str) -> None:
    """The reader of a sample that has no members."""


def reason_of(error: OSError) -> str:
    """The short code of what happened to a shard."""
    return str(getattr(error, "reason", "unreadable-shard"))


def sample_reader(files: OpenShards, shard: str, index: int) -> Reader:
    """Reads the members of sample number ``index`` of a shard by their extension.

    Raises:
        BadSampleError: the sample stands for a damaged spot, or two members have one extension; from the
            reader, that the shard ends inside a member.
        OSError: the shard cannot be read; also from the reader.
    """
    stored = files.table(shard).members(index)
    members = {member.extension: member for member in stored}
    if DAMAGED in members:
        raise BadSampleError("damaged-shard")
    if len(members) < len(stored):
        raise BadSampleError("duplicate-member")

    def read(extension: str) -> bytes | None:
        member = members.get(extension)
        if member is None:
            return None
        data = files.read(shard, member)
        if len(data) < member.size:
            raise BadSampleError("truncated")
        return data

    return read


class ExactReader:
    """Position → stored sample. Holds headers only; shards are opened where samples are read."""

    def __init__(self, spec: FlowSpec) -> None:
        """Loads the index of every shard, building what is missing.

        Raises:
            OSError: a shard does not exist or, being without an index, cannot be read.
            ValueError: a source holds no samples; weights that cannot be.
        """
        self.shards: list[ShardHeader] = []
        self._files = OpenShards(storage=spec.storage)
        streams = []
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

    def __len__(self) -> int:
        return self.stream.samples

    def extensions(self) -> tuple[str, ...]:
        """Extensions of the members in the first shard that holds any sample."""
        first = next(shard.path for shard in self.shards if shard.samples)
        return self._files.table(first).extensions

    def read(self, position: int) -> RawSample:
        """The sample at ``position`` ≥ 0; what cannot be read of it is its reason."""
        _, number, index = self.stream.locate(position)
        shard, key = self.shards[number].path, ""
        try:
            key = self._files.table(shard).key(index)
            return RawSample(shard, key, sample_reader(self._files, shard, index))
        except BadSampleError as bad:
            return RawSample(shard, key, nothing, str(bad))
        except OSError as error:
            return RawSample(shard, key, nothing, reason_of(error))
        except IndexError:  # its index was replaced by that of a shorter shard
            return RawSample(shard, key, nothing, "changed-shard")


class ResampledReader:
    """Any position → the next stored sample that this process draws."""

    def __init__(self, spec: FlowSpec) -> None:
        """Checks the names of the shards.

        Raises:
            FileNotFoundError, ValueError: as :func:`showo_data.shards.expand`.
        """
        self._spec = spec
        self._parts = [expand(part.urls, spec.storage) for part in spec.parts]
        self._draws: Iterator[RawSample] | None = None

    def __len__(self) -> int:
        return 0

    def read(self, position: int) -> RawSample:
        """The next sample; the first position that a process asks for is the seed of all its draws."""
        if self._draws is None:
            self._draws = self._mixed(part_seed(self._spec.seed, 1 + position))
        return next(self._draws)

    def _mixed(self, seed: int) -> Iterator[RawSample]:
        rng, weights = random.Random(seed), [part.weight for part in self._spec.parts]
        parts = [self._shuffled(shards, part_seed(seed, i)) for i, shards in enumerate(self._parts)]
        while True:
            yield next(rng.choices(parts, weights)[0])

    def _shuffled(self, shards: list[str], seed: int) -> Iterator[RawSample]:
        rng = random.Random(seed)
        drawn = webdataset.ResampledShards(
            shards, seed=seed, worker_seed=lambda: 0, deterministic=True
        )
        stored = (sample for source in drawn for sample in self._stored(source["url"]))
        return iter(webdataset.shuffle(self._spec.window, rng=rng)(stored))

    def _stored(self, shard: str) -> Iterator[RawSample]:
        """The samples of a shard, then what could not be read of it."""
        failures: list[Exception] = []

        def note(failure: Exception) -> bool:
            failures.append(failure)
            return True

        try:
            with open_whole(shard, self._spec.storage) as stream:
                opened = [{"url": shard, "stream": stream}]
                for sample in group_by_keys(tar_file_expander(opened, note), handler=note):
                    yield RawSample(shard, sample["__key__"], sample.get)
        except OSError as error:
            failures.append(error)
        for failure in failures:
            reason = reason_of(failure) if isinstance(failure, OSError) else "damaged-shard"
            yield RawSample(shard, "", nothing, reason)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_draws": None}
