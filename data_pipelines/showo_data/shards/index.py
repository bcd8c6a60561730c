"""The index of a shard: what it holds and where, so that any sample is one seek away.

``NAME.tar.index.safetensors`` lies beside ``NAME.tar``, or in the cache folder when the shard is remote or
its folder read-only. It holds size and SHA-256 of the shard, the keys of its samples end to end, and for
every member its extension, byte offset and size, sample by sample.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from webdataset.writer import TarWriter

from showo_data.files import written_aside
from showo_data.shards.cache import open_whole
from showo_data.shards.names import expand, scheme
from showo_data.shards.remote import remote_copy, remote_size
from showo_data.shards.storage import Storage, UnreadableShardError, digest
from showo_data.shards.tables import ShardTable, scan

log = logging.getLogger(__name__)

_VERSION = 2
_KNOWN = "shard"
_ENDING = ".index.safetensors"
_ARRAYS = ("key_bytes", "key_ends_N", "member_ends_N", "extension_M", "offset_M", "size_M")


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What is known of a shard without reading its table of samples; ``size`` in bytes."""

    path: str
    size: int
    samples: int


def index_path(shard: str) -> Path:
    """Where the index of a local shard lies, unless its folder cannot be written to."""
    return Path(f"{shard}{_ENDING}")


def build_index(urls: str | Iterable[str], storage: Storage | None = None) -> list[ShardHeader]:
    """Read every shard that ``urls`` name and write its index, replacing an older one.

    It is written beside a local shard, or into the cache folder when the shard is remote or its folder is
    read-only.

    Raises:
        OSError: a shard cannot be read.
    """
    storage = storage or Storage()
    return [_build_one(shard, storage) for shard in expand(urls, storage)]


def load_index(urls: str | Iterable[str], storage: Storage | None = None) -> list[ShardHeader]:
    """The headers of all shards that ``urls`` name, in order.

    An index that is missing, unreadable or of another size than its shard is built, which the log says; of a
    remote shard, the index beside it is copied if there is one. Later calls believe that copy: a remote shard
    that has changed needs :func:`build_index`.

    Raises:
        OSError: a shard without an index cannot be read.
    """
    storage = storage or Storage()
    return [_load_or_build(shard, storage) for shard in expand(urls, storage)]


def load_table(shard: str, storage: Storage | None = None) -> ShardTable:
    """The samples of a shard whose index exists (see :func:`load_index`)."""
    # Of a shard that has changed since its index was loaded, the old table is as good as any.
    path = _find(shard, storage or Storage()) or index_path(shard)
    with safe_open(path, "np") as stored:
        arrays = {name: stored.get_tensor(name) for name in _ARRAYS}
        return ShardTable(extensions=tuple(_known(stored)["extensions"]), **arrays)


def verify(urls: str | Iterable[str], storage: Storage | None = None) -> Iterator[tuple[str, str]]:
    """Yield (shard, what is wrong with it) for every shard; an empty text means that it is sound."""
    storage = storage or Storage()
    for shard in expand(urls, storage):
        path = _find(shard, storage)
        if path is None:
            yield shard, "its index is missing, unreadable, or of another size than the shard"
            continue
        with open_whole(shard, storage) as stream, safe_open(path, "np") as stored:
            sound = _sha256(stream) == _known(stored)["sha256"]
        yield shard, "" if sound else "its checksum differs from the index: the bytes have changed"


def _cached(shard: str, storage: Storage) -> Path:
    name = shard if scheme(shard) else os.path.abspath(shard)
    return storage.folder / "index" / f"{digest(name)}{_ENDING}"


def _find(shard: str, storage: Storage) -> Path | None:
    """The valid index of a shard on this machine, if there is one."""
    cached = _cached(shard, storage)
    if scheme(shard):
        return cached if _read_header(cached, shard, None) else None
    size = os.path.getsize(shard)
    places = (index_path(shard), cached)
    return next((path for path in places if _read_header(path, shard, size)), None)


def _load_or_build(shard: str, storage: Storage) -> ShardHeader:
    if scheme(shard):
        return _load_remote(shard, storage)
    size = os.path.getsize(shard)
    header = _read_header(index_path(shard), shard, size)
    header = header or _read_header(_cached(shard, storage), shard, size)
    if header is None:
        log.warning("shard %s has no valid index: reading it whole to build one", shard)
        header = _build_one(shard, storage)
    return header


def _load_remote(shard: str, storage: Storage) -> ShardHeader:
    """Processes of one node that look for the same index wait for the first of them."""
    path = _cached(shard, storage)
    header = _read_header(path, shard, None)
    if header is not None:
        return header
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        header = _read_header(path, shard, None) or _fetch(shard, storage, path)
        if header is None:
            log.warning("shard %s has no valid index: reading it whole to build one", shard)
            header = _build_one(shard, storage)
    return header


def _fetch(shard: str, storage: Storage, path: Path) -> ShardHeader | None:
    """Copy the index that lies beside a remote shard, if it is there and fits."""
    size = remote_size(shard, storage)
    if size is None:
        return None
    with suppress(UnreadableShardError), written_aside(path) as stream:
        remote_copy(f"{shard}{_ENDING}", stream, storage)
    return _read_header(path, shard, size)


def _read_header(path: Path, shard: str, size: int | None) -> ShardHeader | None:
    """What the index file at ``path`` says, None if it is not one, or of a shard of another ``size``."""
    try:
        with safe_open(path, "np") as stored:
            known = _known(stored)
        version, indexed, samples = known["version"], known["size"], known["samples"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    if version != _VERSION or (size is not None and indexed != size):
        return None
    return ShardHeader(shard, indexed, samples)


def _known(stored: Any) -> dict[str, Any]:
    """What the open index file says about its shard."""
    known: dict[str, Any] = json.loads((stored.metadata() or {})[_KNOWN])
    return known


def _build_one(shard: str, storage: Storage) -> ShardHeader:
    with open_whole(shard, storage) as stream:
        table = scan(stream)
        stream.seek(0)
        sha256 = _sha256(stream)
        size = stream.seek(0, os.SEEK_END)
    known = {
        "version": _VERSION,
        "size": size,
        "samples": len(table),
        "sha256": sha256,
        "extensions": table.extensions,
    }
    arrays = {name: getattr(table, name) for name in _ARRAYS}
    # One entry, since safetensors writes several in any order, and equal shards shall have equal indices.
    _write(shard, storage, save(arrays, {_KNOWN: json.dumps(known)}))
    return ShardHeader(shard, size, len(table))


def _write(shard: str, storage: Storage, index: bytes) -> None:
    """Beside the shard, or where that is impossible, into the cache folder."""
    if not scheme(shard):
        with suppress(OSError), written_aside(index_path(shard)) as stream:
            stream.write(index)
            return
    path = _cached(shard, storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as stream:
        stream.write(index)


def _sha256(stream: BinaryIO) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # has readinto


# A fixed modification time, so that equal samples give equal bytes.
_MTIME = 0.0


def write_shard(path: str | Path, samples: Iterable[Mapping[str, Any]]) -> int:
    """Write ``samples`` to the tar ``path`` and its index beside it; returns how many there were.

    A sample is ``{"__key__": key, extension: value, …}``; a value is bytes, or what webdataset encodes by
    its extension (text, JSON, arrays). Folders are created as needed. The file appears under its name
    only once it is complete.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with written_aside(target) as stream, TarWriter(stream, mtime=_MTIME) as tar:
        for sample in samples:
            tar.write(dict(sample))
            count += 1
    build_index(str(target))
    return count
