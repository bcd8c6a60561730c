"""The index of a shard: what it holds and where, so that any sample is one seek away.

``NAME.tar.index.npz`` lies beside ``NAME.tar``. It holds plain arrays (no pickles), read with
``allow_pickle=False``: size and SHA-256 of the shard, the keys of its samples end to end, and for every
member its extension, byte offset and size, sample by sample. Members belong together by their key, also
where a shard does not store them side by side.
"""

import hashlib
import logging
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from showo_data.shards.atomic import written_aside
from showo_data.shards.names import expand

log = logging.getLogger(__name__)

_VERSION = 1
Integers = npt.NDArray[np.int64]


class Member(NamedTuple):
    """One file inside a shard: its extension (what follows the key's dot) and where its bytes are."""

    extension: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What is known of a shard without reading its table of samples; ``size`` in bytes."""

    path: str
    size: int
    samples: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardTable:
    """Keys and members of the samples of one shard: 16 to 40 bytes per member, whatever their number."""

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
        """The key of sample number ``sample``."""
        first = int(self.key_ends_N[sample - 1]) if sample else 0
        return self.key_bytes[first : int(self.key_ends_N[sample])].tobytes().decode()

    def members(self, sample: int) -> list[Member]:
        """The files of sample number ``sample``, in the order of the shard."""
        first = int(self.member_ends_N[sample - 1]) if sample else 0
        return [
            Member(self.extensions[self.extension_M[m]], int(self.offset_M[m]), int(self.size_M[m]))
            for m in range(first, int(self.member_ends_N[sample]))
        ]


def index_path(shard: str) -> Path:
    """Where the index of ``shard`` lies."""
    return Path(f"{shard}.index.npz")


def build_index(urls: str | Iterable[str]) -> list[ShardHeader]:
    """Read every shard that ``urls`` name and write its index beside it, replacing an older one."""
    return [_build_one(shard) for shard in expand(urls)]


def load_index(urls: str | Iterable[str]) -> list[ShardHeader]:
    """The headers of all shards that ``urls`` name, in order.

    An index that is missing, unreadable or older than its shard is built, which the log says.
    """
    headers = []
    for shard in expand(urls):
        header = _load_header(shard)
        if header is None:
            log.warning("shard %s has no valid index: reading it whole to build one", shard)
            header = _build_one(shard)
        headers.append(header)
    return headers


def load_table(shard: str) -> ShardTable:
    """The samples of a shard whose index exists (see :func:`load_index`)."""
    with np.load(index_path(shard), allow_pickle=False) as stored:
        return ShardTable(
            key_bytes=stored["key_bytes"],
            key_ends_N=stored["key_ends"],
            member_ends_N=stored["member_ends"],
            extensions=tuple(stored["extensions"].tolist()),
            extension_M=stored["extension"],
            offset_M=stored["offset"],
            size_M=stored["size"],
        )


def verify(urls: str | Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (shard, what is wrong with it) for every shard; an empty text means that it is sound."""
    for shard in expand(urls):
        header = _load_header(shard)
        if header is None:
            yield shard, "its index is missing, unreadable, or of another size than the shard"
        elif _sha256(shard) != header.sha256:
            yield shard, "its checksum differs from the index: the bytes have changed"
        else:
            yield shard, ""


def _load_header(shard: str) -> ShardHeader | None:
    try:
        with np.load(index_path(shard), allow_pickle=False) as stored:
            version, size, samples = stored["header"].tolist()
            sha256 = stored["sha256"].tobytes().hex()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if version != _VERSION or size != os.path.getsize(shard):
        return None
    return ShardHeader(shard, size, samples, sha256)


def _build_one(shard: str) -> ShardHeader:
    table = _scan(shard)
    size, sha256 = os.path.getsize(shard), _sha256(shard)
    with written_aside(index_path(shard)) as stream:
        np.savez(
            stream,
            header=np.array([_VERSION, size, len(table)], dtype=np.int64),
            sha256=np.frombuffer(bytes.fromhex(sha256), dtype=np.uint8),
            key_bytes=table.key_bytes,
            key_ends=table.key_ends_N,
            member_ends=table.member_ends_N,
            extensions=np.array(table.extensions, dtype=np.str_),
            extension=table.extension_M,
            offset=table.offset_M,
            size=table.size_M,
        )
    return ShardHeader(shard, size, len(table), sha256)


def _scan(shard: str) -> ShardTable:
    """Group the files of a tar into samples by their key."""
    samples: dict[str, list[Member]] = {}
    for name, offset, size in _files(shard):
        folder, base = os.path.split(name)
        stem, _, extension = base.partition(".")
        if stem and extension:
            key = f"{folder}/{stem}" if folder else stem
            samples.setdefault(key, []).append(Member(extension.lower(), offset, size))
    members = [member for group in samples.values() for member in group]
    extensions = sorted({member.extension for member in members})
    number = {extension: i for i, extension in enumerate(extensions)}
    keys = [key.encode() for key in samples]
    return ShardTable(
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_ends_N=np.cumsum([len(key) for key in keys], dtype=np.int64),
        member_ends_N=np.cumsum([len(group) for group in samples.values()], dtype=np.int64),
        extensions=tuple(extensions),
        extension_M=np.array([number[member.extension] for member in members], dtype=np.uint16),
        offset_M=np.array([member.offset for member in members], dtype=np.int64),
        size_M=np.array([member.size for member in members], dtype=np.int64),
    )


def _files(shard: str) -> Iterator[tuple[str, int, int]]:
    """Name, byte offset and size of the regular files of a tar, up to where it can be read."""
    try:
        with tarfile.open(shard, "r:", errors="surrogateescape") as tar:
            for entry in tar:
                if entry.isreg():
                    yield entry.name, entry.offset_data, entry.size
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every entry; a large shard has many
    except tarfile.ReadError as error:
        log.warning("shard %s cannot be read to its end: %s", shard, error)


def _sha256(shard: str) -> str:
    with open(shard, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
