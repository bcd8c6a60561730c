"""A sample as its shard stores it, before anything is decoded."""

from dataclasses import dataclass
from typing import Protocol

from showo_data.members import BadSampleError, Reader
from showo_data.shards import DAMAGED, OpenShards


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
