"""Write shards with an index that lists their samples and byte offsets, so that any sample is one seek away.

The index of ``NAME.tar`` is ``NAME.tar.index.safetensors`` beside it, or in the cache folder when the shard
is remote or its folder is read-only. It holds size and SHA-256 of the shard, the keys of its samples, and
extension, byte offset, size and the checksum of the tar header of every member.

An index knows its shard. Of a local one, it has the time of modification as its own (equal shards have equal
indices), and the checksums of the first and the last header. Of a remote one, it has the ETag.
"""

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from webdataset.writer import TarWriter

from showo_data.files import written_aside
from showo_data.shards.cache import open_whole
from showo_data.shards.foreign import (
    DEREFERENCE,
    NotATarError,
    refuse_foreign,
    refuse_without_samples,
)
from showo_data.shards.names import expand, listed, scheme
from showo_data.shards.remote import remote_copy, remote_read, remote_state
from showo_data.shards.storage import (
    UNKNOWN,
    RemoteState,
    Storage,
    UnreadableShardError,
    digest,
)
from showo_data.shards.tables import BLOCK, DAMAGED, LINK, SPARSE, ShardTable, scan

log = logging.getLogger(__name__)

_VERSION = 4
_MTIME = 0.0  # of the files in a shard: fixed, so that equal samples give equal bytes
_METADATA = "shard"  # the entry of the file's metadata, as JSON
_ENDING = ".index.safetensors"
_ARRAYS = (
    "key_bytes",
    "key_ends_N",
    "member_ends_N",
    "extension_M",
    "offset_M",
    "size_M",
    "check_M",
)


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """Path, size in bytes, number of samples and SHA-256 of a shard, read without its table of samples."""

    path: str
    size: int
    samples: int
    sha256: str
    origin: str = ""  # SHA-256 of the shard that it was made of, if that was noted


def index_path(shard: str) -> Path:
    """Return the path of the index of a local shard, unless its folder is read-only."""
    return Path(f"{shard}{_ENDING}")


def write_shard(path: str | Path, samples: Iterable[Mapping[str, Any]], origin: str = "") -> int:
    """Write ``samples`` to the tar ``path`` with its index beside it; returns their number.

    A sample is ``{"__key__": key, extension: value, …}``; a value is bytes, or an object that webdataset
    encodes by its extension (text, JSON, arrays). Folders are created as needed. The shard gets its name
    once it is complete; ``origin`` is noted in its index.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with written_aside(target) as stream, TarWriter(stream, mtime=_MTIME) as tar:
        for sample in samples:
            tar.write(dict(sample))
            count += 1
    _build_one(str(target), Storage(), origin)
    return count


def build_index(
    urls: str | Iterable[str],
    storage: Storage | None = None,
    track: Callable[[list[str]], Iterable[str]] = list,
) -> list[ShardHeader]:
    """Read every shard of ``urls`` (paths, URLs, brace patterns) and write its index, replacing an older one.

    Args:
        urls, storage: as :func:`load_index`.
        track: yields the shards that it is given; may show the progress.

    Raises:
        OSError, NotATarError: as :func:`load_index`.
    """
    storage = storage or Storage()
    return _of_each(track(expand(urls, storage)), lambda shard: _build_one(shard, storage))


def load_index(urls: str | Iterable[str], storage: Storage | None = None) -> list[ShardHeader]:
    """Return the headers of all shards of ``urls``, in order.

    An index that is missing, unreadable, or of a shard that has changed is built, with a warning in the log.
    For a remote shard, an index that is published beside it is copied. Later calls believe the copy, without
    a request; reading finds a change of the shard, and deletes the index of the old one.

    Raises:
        OSError: shards without an index cannot be read; names them all.
        NotATarError: shards without an index are no tars; names them all.
    """
    storage = storage or Storage()
    return _of_each(expand(urls, storage), lambda shard: _load_or_build(shard, storage))


def _of_each(shards: Iterable[str], header_of: Callable[[str], ShardHeader]) -> list[ShardHeader]:
    """Collect the headers of all shards; those that are bad are named together, since each costs a start."""
    headers: list[ShardHeader] = []
    bad: list[NotATarError | OSError] = []
    for shard in shards:
        try:
            headers.append(header_of(shard))
        except UnreadableShardError:  # of a server or the cache: the next one may cost as long
            raise
        except (NotATarError, OSError) as error:
            bad.append(error)
    if len(bad) > 1:
        message = f"{len(bad)} shards cannot be used: {listed(bad, '; ')}"
        number = next((error.errno for error in bad if isinstance(error, OSError)), None)
        # With its number, the error is of the same class: a mistake in a path, or a fault of the machine.
        raise NotATarError(message) if number is None else OSError(number, message)
    if bad:
        raise bad[0]
    return headers


def load_table(shard: str, storage: Storage | None = None) -> ShardTable:
    """Read the table of samples of a shard whose index exists (see :func:`load_index`).

    Raises:
        UnreadableShardError: "changed-shard": the index does not belong to the shard.
    """
    return load_indexed(shard, storage or Storage()).table


class Indexed(NamedTuple):
    """The content of an index; ``state`` of a remote shard."""

    header: ShardHeader
    table: ShardTable
    state: RemoteState


def load_indexed(shard: str, storage: Storage) -> Indexed:
    """Read the whole index of a shard.

    Raises:
        UnreadableShardError: as :func:`load_table`; "broken-index": the index itself was damaged.
    """
    found = _find(shard, storage)
    if found is None:
        raise UnreadableShardError(
            "changed-shard", f"{shard}: it has changed since it was indexed, or has no index"
        )
    path, known = found
    try:
        arrays = _arrays(path)
        broken = _checksum(arrays) != known["arrays"]
    except (
        SafetensorError,
        TypeError,
        ValueError,
    ):  # a dtype that is none, a shape that does not fit
        broken = True
    if broken:
        raise UnreadableShardError(
            "broken-index", f"{shard}: its index {path} is damaged; delete it, and it is built anew"
        )
    table = ShardTable(extensions=tuple(known["extensions"]), **arrays)
    state = RemoteState(known["size"], known.get("etag", ""))
    return Indexed(_header(shard, known), table, state)


def samples_of(shard: str, storage: Storage) -> int | None:
    """Return how many samples the index of a shard has, whether it can be read or not; None without index."""
    known = next(filter(None, map(_read, _places(shard, storage))), None)
    return known["samples"] if known else None


def forget_index(shard: str, storage: Storage) -> None:
    """Delete the index of a remote shard that has changed, so that the next run builds it anew."""
    with suppress(OSError):
        _cached(shard, storage).unlink()


def verify(urls: str | Iterable[str], storage: Storage | None = None) -> Iterator[tuple[str, str]]:
    """Compare every shard with its index: yield the shard and its fault, "" if there is none."""
    storage = storage or Storage()
    for shard in expand(urls, storage):
        try:
            yield shard, _fault(shard, storage)
        except (NotATarError, OSError) as error:
            yield shard, str(error).removeprefix(shard).removeprefix(":").strip()


def _fault(shard: str, storage: Storage) -> str:
    known = next(filter(None, map(_read, _places(shard, storage))), None)
    with open_whole(shard, storage) as stream:
        refuse_foreign(shard, stream)
        if known is None:
            return "its index is missing, unreadable or old: run `showo-dist shards index`"
        if stream.seek(0, os.SEEK_END) != known["size"]:
            return f"of another size than its index says, {known['size']} bytes"
        stream.seek(0)
        if _sha256(stream) != known["sha256"]:
            return "its checksum differs from the index: the bytes have changed"
        table, unnamed = scan(stream)
        refuse_without_samples(shard, stream, table, unnamed)
    links = int((table.size_M == LINK).sum())
    if links:
        return f"holds {links} links without their files: {DEREFERENCE}"
    if DAMAGED in known["extensions"]:
        return "damaged when it was indexed: a header is broken, or the end is missing"
    if _checksum(_arrays_of(table)) != known["arrays"]:
        return "its index lists other members than it has: run `showo-dist shards index`"
    return ""


def _build_one(shard: str, storage: Storage, origin: str = "") -> ShardHeader:
    state = remote_state(shard, storage) if scheme(shard) else UNKNOWN
    with open_whole(shard, storage, fresh=True) as stream:
        modified = os.fstat(stream.fileno()).st_mtime_ns
        refuse_foreign(shard, stream)
        table, unnamed = scan(stream)
        refuse_without_samples(shard, stream, table, unnamed)
        stream.seek(0)  # a second pass, since scan() does not read the contents of members
        sha256 = _sha256(stream)
        size = stream.seek(0, os.SEEK_END)
    if unnamed:
        log.warning(
            "shard %s: %d files have no extension and belong to no sample, such as %r; a sample's files are "
            "KEY.EXTENSION",
            shard,
            len(unnamed),
            unnamed[0],
        )
    # Without damaged parts, and without sparse members, whose header may not be the block before them.
    whole = np.flatnonzero((table.check_M != 0) & (table.size_M != SPARSE))
    known = {
        "version": _VERSION,
        "size": size,
        "samples": len(table),
        "sha256": sha256,
        "extensions": table.extensions,
        "ends": [[int(table.offset_M[m]), int(table.check_M[m])] for m in whole[[0, -1]]]
        if len(whole)
        else [],
    }
    if state.etag:
        known["etag"] = state.etag
    if origin:
        known["origin"] = origin
    _write(shard, storage, known, _arrays_of(table), modified)
    return _header(shard, known)


def _write(
    shard: str, storage: Storage, known: dict[str, Any], arrays: dict[str, Any], modified: int
) -> None:
    """Write the index beside the shard, or into the cache folder if that is not possible."""
    # One metadata entry: safetensors writes several in any order, and equal shards must have equal indices.
    whole = known | {"arrays": _checksum(arrays)}
    index = save(arrays, {_METADATA: json.dumps(whole | {"check": _check(whole)})})
    if not scheme(shard):
        # A read-only folder, a file name that gets too long, or a file system that keeps no times.
        with suppress(OSError):
            _write_dated(index_path(shard), index, modified)
            if index_path(shard).stat().st_mtime_ns == modified:
                return
    path = _cached(shard, storage)
    with _writable(path, shard):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_dated(path, index, modified)


@contextmanager
def _writable(path: Path, shard: str) -> Iterator[None]:
    """Turn an error of writing ``path`` in the cache folder into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise UnreadableShardError(
            "no-index",
            f"{shard}: its index cannot be written to {path.parent}: {error}; "
            "set data.cache_dir (--cache-dir) to a folder that is writable",
        ) from error


def _write_dated(path: Path, index: bytes, modified: int) -> None:
    with written_aside(path) as stream:
        stream.write(index)
        stream.flush()
        os.utime(stream.fileno(), ns=(modified, modified))


def _load_or_build(shard: str, storage: Storage) -> ShardHeader:
    if scheme(shard):
        return _load_remote(shard, storage)
    found = _find(shard, storage, ends=True)
    return _header(shard, found[1]) if found else _rebuild(shard, storage)


def _load_remote(shard: str, storage: Storage) -> ShardHeader:
    """Load the index of a remote shard; one process of a node fetches or builds it while the others wait."""
    path = _cached(shard, storage)
    known = _read(path)
    if known is None:
        with _writable(path, shard):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".lock").touch()
        with FileLock(path.with_suffix(".lock")):
            # Another process may have written it while this one waited for the lock.
            known = _read(path) or _fetch(shard, storage, path)
            if known is None:
                return _rebuild(shard, storage)
    return _header(shard, known)


def _rebuild(shard: str, storage: Storage) -> ShardHeader:
    log.warning(
        "shard %s has no valid index (it has none, an old one, or was changed): "
        "reading it whole to build one",
        shard,
    )
    return _build_one(shard, storage)


def _fetch(shard: str, storage: Storage, path: Path) -> dict[str, Any] | None:
    """Copy the index that is published beside a remote shard; None if there is none for this shard."""
    state = remote_state(shard, storage)
    if state.size is None:
        return None
    # Most shards have no published index.
    with suppress(UnreadableShardError), written_aside(path) as stream:
        # Less than the shard, where every member has a header of 512 bytes.
        remote_copy(f"{shard}{_ENDING}", stream, storage, most=state.size + (1 << 20))
    known = _read(path)
    if known is None or known["size"] != state.size:
        path.unlink(missing_ok=True)
        return None
    blocks = [
        remote_read(shard, offset - BLOCK, BLOCK, storage, state) for offset, _ in known["ends"]
    ]
    if [zlib.crc32(block) for block in blocks] != [check for _, check in known["ends"]]:
        path.unlink()
        return None
    if state.etag:
        _write(shard, storage, known | {"etag": state.etag}, _arrays(path), time.time_ns())
    return known


def _find(
    shard: str, storage: Storage, *, ends: bool = False
) -> tuple[Path, dict[str, Any]] | None:
    """Return path and metadata of the valid index of a shard on this machine; None if there is none.

    Args:
        ends: compare the first and the last header of a local shard, too.

    Raises:
        OSError: a local shard does not exist.
    """
    local = None if scheme(shard) else os.stat(shard)
    for path in _places(shard, storage):
        known = _read(path)
        if known is None:
            continue
        if local is None:
            return path, known
        same_time = path.stat().st_mtime_ns == local.st_mtime_ns
        same = same_time and known["size"] == local.st_size
        if same and (not ends or _same_ends(shard, known)):
            return path, known
    return None


def _arrays_of(table: ShardTable) -> dict[str, Any]:
    return {name: getattr(table, name) for name in _ARRAYS}


def _arrays(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as stored:
        return {name: stored.get_tensor(name) for name in _ARRAYS}


def _checksum(arrays: Mapping[str, Any]) -> int:
    """Return the CRC-32 of names, dtypes and values of the arrays of an index."""
    check = 0
    for name in _ARRAYS:
        check = zlib.crc32(f"{name}{arrays[name].dtype.str}".encode(), check)
        check = zlib.crc32(arrays[name].tobytes(), check)
    return check


def _check(known: Mapping[str, Any]) -> int:
    """Return the CRC-32 of the metadata of an index."""
    rest = {key: value for key, value in known.items() if key != "check"}
    return zlib.crc32(json.dumps(rest).encode())


def _same_ends(shard: str, known: dict[str, Any]) -> bool:
    """Whether the first and the last header of a local shard are those that were indexed."""
    with open(shard, "rb", buffering=0) as stream:
        for offset, check in known["ends"]:
            stream.seek(offset - BLOCK)
            if zlib.crc32(stream.read(BLOCK)) != check:
                return False
    return True


def _places(shard: str, storage: Storage) -> tuple[Path, ...]:
    """Return where the index of a shard may be."""
    cached = _cached(shard, storage)
    return (cached,) if scheme(shard) else (index_path(shard), cached)


def _cached(shard: str, storage: Storage) -> Path:
    """Return the path of the index of a shard in the cache folder."""
    name = shard if scheme(shard) else os.path.abspath(shard)
    return storage.folder / "index" / f"{digest(name)}{_ENDING}"


def _read(path: Path) -> dict[str, Any] | None:
    """Read the metadata of the index file ``path``; None if it is no intact index of this version."""
    try:
        with safe_open(path, "np") as stored:
            known = _metadata(stored)
            missing = {*_ARRAYS} - {*stored.keys()}
        intact = known["version"] == _VERSION and known["check"] == _check(known)
    except (
        OSError,
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ):
        return None
    return known if intact and not missing else None


def _header(shard: str, known: dict[str, Any]) -> ShardHeader:
    facts = int(known["size"]), int(known["samples"]), str(known["sha256"])
    return ShardHeader(shard, *facts, str(known.get("origin", "")))


def _metadata(stored: Any) -> dict[str, Any]:
    """Return the metadata of an open index file."""
    known: dict[str, Any] = json.loads((stored.metadata() or {})[_METADATA])
    return known


def _sha256(stream: BinaryIO) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # has readinto
