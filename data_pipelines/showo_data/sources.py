"""A flow's shards as an endless, numbered list of samples."""

from collections.abc import Mapping

from showo_data.images import TooLargeError
from showo_data.members import (
    CODES,
    CONDITION,
    BadSampleError,
    Reader,
    read_codes,
    read_conversation,
    read_image,
    read_text,
)
from showo_data.samples import FlowSpec, Sample, Skipped
from showo_data.shards import Member, OpenShards, ShardHeader, load_index
from showo_data.streams import CanonicalStream


class Source:
    """Position → sample of one flow. Holds headers only; shards are opened where samples are read."""

    def __init__(self, spec: FlowSpec) -> None:
        """Loads the index of every shard, building what is missing.

        Raises:
            FileNotFoundError: a shard does not exist.
            ValueError: the shards hold nothing, or pictures and the flow has no transform for them.
        """
        self.spec = spec
        self.shards: list[ShardHeader] = load_index(spec.urls)
        self._files = OpenShards()
        counts = [shard.samples for shard in self.shards]
        if not any(counts):
            raise ValueError(f"flow {spec.flow!r}: the shards {list(spec.urls)} hold no samples")
        self.stream = CanonicalStream(counts, spec.seed, spec.streams, spec.window)
        if spec.kind != "text" and spec.transform is None:
            self._require_codes()

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self.stream.samples

    def __getitem__(self, position: int) -> Sample | Skipped:
        """The sample at ``position`` ≥ 0, or why it is absent."""
        _, number, index = self.stream.locate(position)
        shard, key = self.shards[number].path, ""
        try:
            key = self._files.table(shard).key(index)
            members = _by_extension(self._files.table(shard).members(index))
            return self._build(position, key, self._reader(shard, members))
        except BadSampleError as bad:
            return Skipped(self.spec.flow, position, shard, key, str(bad))
        except TooLargeError:
            return Skipped(self.spec.flow, position, shard, key, "image-too-large")
        except OSError:
            return Skipped(self.spec.flow, position, shard, key, "unreadable-shard")

    def _build(self, position: int, key: str, read: Reader) -> Sample:
        sample = Sample(self.spec.flow, position, key)
        if self.spec.kind != "text":
            self._add_picture(sample, read)
        if self.spec.kind in ("caption", "text"):
            sample.text = read_text(read)
        elif self.spec.kind == "conversation":
            sample.conversation = read_conversation(read)
        return sample

    def _add_picture(self, sample: Sample, read: Reader) -> None:
        """The codes of an encoded sample, else its picture: the one for each transform."""
        sample.codes_N = read_codes(read, CODES)
        if sample.codes_N is not None:
            sample.condition_codes_G = read_codes(read, CONDITION)
            return
        if self.spec.transform is None:
            raise BadSampleError("no-codes")
        picture = read_image(read)
        sample.image_3HW = self.spec.transform(picture)
        if self.spec.condition_transform is not None:
            sample.condition_3HW = self.spec.condition_transform(picture)

    def _reader(self, shard: str, members: Mapping[str, Member]) -> Reader:
        def read(extension: str) -> bytes | None:
            member = members.get(extension)
            if member is None:
                return None
            data = self._files.read(shard, member)
            if len(data) < member.size:
                raise BadSampleError("truncated")
            return data

        return read

    def _require_codes(self) -> None:
        first = next(shard.path for shard in self.shards if shard.samples)
        if CODES not in self._files.table(first).extensions:
            raise ValueError(
                f"flow {self.spec.flow!r} needs a transform: {first!r} holds pictures, not {CODES!r}"
            )


def _by_extension(members: list[Member]) -> dict[str, Member]:
    by_extension = {member.extension: member for member in members}
    if len(by_extension) < len(members):
        raise BadSampleError("duplicate-member")
    return by_extension
