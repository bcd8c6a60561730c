"""Exact sampling: every sample once per epoch, its place given by arithmetic."""

from showo_data.members import BadSampleError
from showo_data.raw import RawSample, nothing, reason_of, sample_reader
from showo_data.samples import FlowSpec
from showo_data.shards import OpenShards, ShardHeader, load_index
from showo_data.streams import CanonicalStream, MixedStream, part_seed


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
