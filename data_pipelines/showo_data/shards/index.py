"""Write shards with an index that lists their samples and byte offsets, so that any sample is one seek away.

The index of ``NAME.tar`` is ``NAME.tar.index.safetensors`` beside it, or in the cache folder when the shard
is remote or its folder is read-only. It holds size and SHA-256 of the shard, the keys of its samples, and
extension, byte offset and size of every member.
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
_MTIME = 0.0  # of the files in a shard: fixed, so that equal samples give equal bytes
_METADATA = "shard"  # the entry of the file's metadata, as JSON
_ENDING = ".index.safetensors"
_ARRAYS = ("key_bytes", "key_ends_N", "member_ends_N", "extension_M", "offset_M", "size_M")


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """Path, size in bytes and number of samples of a shard, read without its table of samples."""

    path: str
    size: int
    samples: int


def index_path(shard: str) -> Path:
    """Return the path of the index of a local shard, unless its folder is read-only."""
    return Path(f"{shard}{_ENDING}")


def write_shard(path: str | Path, samples: Iterable[Mapping[str, Any]]) -> int:
    """Write ``samples`` to the tar ``path`` with its index beside it; returns their number.

    A sample is ``{"__key__": key, extension: value, …}``; a value is bytes, or an object that webdataset
    encodes by its extension (text, JSON, arrays). Folders are created as needed. The shard gets its name
    once it is complete.
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


def build_index(urls: str | Iterable[str], storage: Storage | None = None) -> list[ShardHeader]:
    """Read every shard of ``urls`` (paths, URLs, brace patterns) and write its index, replacing an older one.

    Raises:
        OSError: a shard cannot be read.
    """
    storage = storage or Storage()
    return [_build_one(shard, storage) for shard in expand(urls, storage)]


def load_index(urls: str | Iterable[str], storage: Storage | None = None) -> list[ShardHeader]:
    """Return the headers of all shards of ``urls``, in order.

    An index that is missing, unreadable or for another size than the shard's is built, with a warning in the
    log. For a remote shard, an index that is published beside it is copied; later calls trust the copy, so
    :func:`build_index` is necessary after a remote shard was changed.

    Raises:
        OSError: a shard without an index cannot be read.
    """
    storage = storage or Storage()
    return [_load_or_build(shard, storage) for shard in expand(urls, storage)]


def load_table(shard: str, storage: Storage | None = None) -> ShardTable:
    """Read the table of samples of a shard whose index exists (see :func:`load_index`)."""
    # No index is valid if the shard has changed since its index was loaded: use the old one then.
    path = _find(shard, storage or Storage()) or index_path(shard)
    with safe_open(path, "np") as stored:
        arrays = {name: stored.get_tensor(name) for name in _ARRAYS}
        return ShardTable(extensions=tuple(_metadata(stored)["extensions"]), **arrays)


def verify(urls: str | Iterable[str], storage: Storage | None = None) -> Iterator[tuple[str, str]]:
    """Compare every shard with its index: yield the shard and its fault, "" if there is none."""
    storage = storage or Storage()
    for shard in expand(urls, storage):
        path = _find(shard, storage)
        if path is None:
            yield shard, "its index is missing, unreadable, or of another size than the shard"
            continue
        with open_whole(shard, storage) as stream, safe_open(path, "np") as stored:
            sound = _sha256(stream) == _metadata(stored)["sha256"]
        yield shard, "" if sound else "its checksum differs from the index: the bytes have changed"


def _build_one(shard: str, storage: Storage) -> ShardHeader:
    with open_whole(shard, storage) as stream:
        table = scan(stream)
        stream.seek(0)  # a second pass, since scan() does not read the contents of members
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
    # One metadata entry: safetensors writes several in any order, and equal shards must have equal indices.
    _write(shard, storage, save(arrays, {_METADATA: json.dumps(known)}))
    return ShardHeader(shard, size, len(table))


def _write(shard: str, storage: Storage, index: bytes) -> None:
    """Write the index beside the shard, or into the cache folder if that is not possible."""
    if not scheme(shard):
        # A read-only folder, or a file name that gets too long.
        with suppress(OSError), written_aside(index_path(shard)) as stream:
            stream.write(index)
            return
    path = _cached(shard, storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as stream:
        stream.write(index)


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
    """Load the index of a remote shard; one process of a node fetches or builds it while the others wait."""
    path = _cached(shard, storage)
    header = _read_header(path, shard, None)
    if header is not None:
        return header
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        # Another process may have written it while this one waited for the lock.
        header = _read_header(path, shard, None) or _fetch(shard, storage, path)
        if header is None:
            log.warning("shard %s has no valid index: reading it whole to build one", shard)
            header = _build_one(shard, storage)
    return header


def _fetch(shard: str, storage: Storage, path: Path) -> ShardHeader | None:
    """Copy the index that is published beside a remote shard; None if there is none for its size."""
    size = remote_size(shard, storage)
    if size is None:
        return None
    # Most shards have no published index.
    with suppress(UnreadableShardError), written_aside(path) as stream:
        remote_copy(f"{shard}{_ENDING}", stream, storage)
    return _read_header(path, shard, size)


def _find(shard: str, storage: Storage) -> Path | None:
    """Return the path of the valid index of a shard on this machine; None if there is none."""
    cached = _cached(shard, storage)
    if scheme(shard):
        return cached if _read_header(cached, shard, None) else None
    size = os.path.getsize(shard)
    places = (index_path(shard), cached)
    return next((path for path in places if _read_header(path, shard, size)), None)


def _cached(shard: str, storage: Storage) -> Path:
    """Return the path of the index of a shard in the cache folder."""
    name = shard if scheme(shard) else os.path.abspath(shard)
    return storage.folder / "index" / f"{digest(name)}{_ENDING}"


def _read_header(path: Path, shard: str, size: int | None) -> ShardHeader | None:
    """Read the header in the index file ``path``; None if it is no index, or for another ``size``."""
    try:
        with safe_open(path, "np") as stored:
            known = _metadata(stored)
        version, indexed, samples = known["version"], known["size"], known["samples"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    if version != _VERSION or (size is not None and indexed != size):
        return None
    return ShardHeader(shard, indexed, samples)


def _metadata(stored: Any) -> dict[str, Any]:
    """Return the metadata of an open index file."""
    known: dict[str, Any] = json.loads((stored.metadata() or {})[_METADATA])
    return known


def _sha256(stream: BinaryIO) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # has readinto
