"""The table of samples of a shard, from one pass over the tar.

Letters: N samples, M members.
"""

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

# Extension of the only member of a sample that marks a damaged part of the shard.
DAMAGED = "damaged"
_BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """One file in a shard: its extension (behind the dot of the key), byte offset and size."""

    extension: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ShardTable:
    """Keys and members of the samples of one shard, in 16 to 40 bytes per member.

    Attributes:
        key_bytes: the keys of all samples, end to end.
        key_ends_N: end of each sample's key in ``key_bytes``.
        member_ends_N: end of each sample's members in the arrays of members.
        extensions: the different extensions.
        extension_M: number of each member's extension in ``extensions``.
        offset_M, size_M: bytes of each member in the shard.
    """

    key_bytes: npt.NDArray[np.uint8]
    key_ends_N: Integers
    member_ends_N: Integers
    extensions: tuple[str, ...]
    extension_M: npt.NDArray[np.uint16]
    offset_M: Integers
    size_M: Integers

    def __len__(self) -> int:
        return len(self.key_ends_N)

    def key(self, sample: int) -> str:
        """Return the key of sample number ``sample``."""
        first = int(self.key_ends_N[sample - 1]) if sample else 0
        return (
            self.key_bytes[first : int(self.key_ends_N[sample])]
            .tobytes()
            .decode("utf-8", "replace")
        )

    def members(self, sample: int) -> list[Member]:
        """Return the members of sample number ``sample``, in the order of the shard."""
        first = int(self.member_ends_N[sample - 1]) if sample else 0
        return [
            Member(self.extensions[self.extension_M[m]], int(self.offset_M[m]), int(self.size_M[m]))
            for m in range(first, int(self.member_ends_N[sample]))
        ]


def scan(stream: BinaryIO) -> ShardTable:
    """Group the files of a tar into samples by their key, wherever in the tar they are.

    Where the tar cannot be read (it ends early, or a header is damaged), reading continues at the next intact
    header. Each such part becomes a sample with one empty member, :data:`DAMAGED`, so that it is counted as a
    bad sample in training.
    """
    samples: dict[str, list[Member]] = {}
    for name, offset, size in _files(stream):
        folder, base = os.path.split(name)
        stem, _, extension = base.partition(".")
        if stem and extension:
            key = f"{folder}/{stem}" if folder else stem
            samples.setdefault(key, []).append(Member(extension.lower(), offset, size))
    return _as_table(samples)


def _as_table(samples: dict[str, list[Member]]) -> ShardTable:
    members = [member for group in samples.values() for member in group]
    extensions = sorted({member.extension for member in members})
    number = {extension: i for i, extension in enumerate(extensions)}
    keys = [key.encode("utf-8", "surrogateescape") for key in samples]
    return ShardTable(
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_ends_N=np.cumsum([len(key) for key in keys], dtype=np.int64),
        member_ends_N=np.cumsum([len(group) for group in samples.values()], dtype=np.int64),
        extensions=tuple(extensions),
        extension_M=np.array([number[member.extension] for member in members], dtype=np.uint16),
        offset_M=np.array([member.offset for member in members], dtype=np.int64),
        size_M=np.array([member.size for member in members], dtype=np.int64),
    )


def _files(stream: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Yield name, byte offset and size of the regular files of a tar, and of its damaged parts."""
    start: int | None = 0
    while start is not None:
        end = start
        for entry in _entries(stream, start):
            if entry.isreg():
                yield entry.name, entry.offset_data, entry.size
            end = entry.offset_data + (-(-entry.size // _BLOCK) * _BLOCK if entry.isreg() else 0)
        stream.seek(end)
        if stream.read(_BLOCK) == bytes(_BLOCK):  # the end of a tar
            return
        yield f"damaged-at-{end}.{DAMAGED}", end, 0
        start = _next_header(stream, end + _BLOCK)


def _entries(stream: BinaryIO, start: int) -> Iterable[tarfile.TarInfo]:
    """Yield the entries from byte ``start`` on, up to the first that cannot be read."""
    stream.seek(start)
    try:
        with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as tar:
            for entry in tar:
                yield entry
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every entry; a large shard has many
    except tarfile.ReadError:
        return


def _next_header(stream: BinaryIO, start: int) -> int | None:
    """Return the byte offset of the next intact header; None if there is none."""
    stream.seek(start)
    while len(block := stream.read(_BLOCK)) == _BLOCK:
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
            except tarfile.HeaderError:
                continue
            return stream.tell() - _BLOCK
    return None
