"""Writing one rank's files of a checkpoint, and reading them back for verification."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from showo_dist.checkpoint.folders import FileEntry, sync
from showo_dist.checkpoint.reader import file_prefix
from showo_dist.checkpoint.slices import Piece, Placed

_METADATA = {"format": "pt"}
_LENGTH, _LONGEST_HEADER = 8, 100_000_000  # bytes; both are safetensors' own
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Part:
    """The files that a rank wrote, and the pieces in them."""

    files: dict[str, FileEntry]
    placed: list[Placed]


def write_part(folder: Path, pieces: Iterable[Piece], rank: int, world: int) -> Part:
    """Write a rank's pieces and read them back; weights, their averages and moments have separate files.

    Raises:
        OSError: they cannot be written, or the disk returns other bytes.
    """
    # Weights and moments in separate files: inference and export read a third of the bytes.
    grouped: dict[str, list[Piece]] = {}
    for piece in pieces:
        grouped.setdefault(file_prefix(piece.kind), []).append(piece)
    part = Part({}, [])
    for prefix, group in grouped.items():
        name = f"{prefix}-{rank + 1:05d}-of-{world:05d}.safetensors"
        part.files[name] = _write(folder / name, group)
        part.placed.extend(piece.placed_in(name) for piece in group)
    return part


def _write(path: Path, pieces: list[Piece]) -> FileEntry:
    try:
        save_tensors({piece.key: piece.stored() for piece in pieces}, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None
    sync(path)
    _forget_cached(path)
    return read_back(path, pieces)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that all may read who may read its folder.

    Raises:
        SafetensorError, OSError: it cannot be written.
    """
    save_file(dict(tensors), path, metadata=_METADATA)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes mode 600


def read_back(path: Path, pieces: Sequence[Piece]) -> FileEntry:
    """Size and checksum of a file of pieces, which is compared with them while it is read.

    The file is read once, a few megabytes at a time, because on a CPU this competes with training.

    Raises:
        OSError: it cannot be read, or differs from the pieces.
    """
    # One pass serves both: the comparison with memory and the checksum of the manifest.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        try:
            header = _read_header(file)
            digest.update(header)
            _compare(file, _in_order(json.loads(header[_LENGTH:]), pieces), digest.update)
        except (_OtherBytesError, ValueError, KeyError, TypeError):
            raise OSError(f"{path}: the disk gives back other bytes than were written") from None
        return FileEntry(file.tell(), digest.hexdigest())


class _OtherBytesError(Exception):
    """A file holds other bytes than were written."""


def _read_header(file: BinaryIO) -> bytes:
    """The eight bytes of the header's length, and the JSON header that follows."""
    length = file.read(_LENGTH)
    return length + file.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))


def _in_order(header: dict[str, Any], pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces in the order of the file, whose header must describe exactly these pieces."""
    described: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    placed = sorted(pieces, key=lambda piece: header[piece.key]["data_offsets"])
    for piece in placed:
        begin, end = end, end + piece.values_N.nbytes
        shape = list(piece.stored().shape)
        described[piece.key] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    # The header decides which bytes belong to which tensor, so it must be exactly the expected one.
    if header != described:
        raise _OtherBytesError
    return placed


def _compare(file: BinaryIO, pieces: Iterable[Piece], read: Callable[[memoryview], object]) -> None:
    """Compare bytes, not numbers: NaN is not equal to itself.

    NumPy compares in this thread alone; torch would take cores from the training.
    """
    # Reused for every chunk; a fresh buffer per chunk would double the memory traffic.
    words = np.empty(_CHUNK_BYTES // 4, dtype=np.int32)
    memory = memoryview(words).cast("B")  # type: ignore[arg-type]  # an array is a buffer
    for piece in pieces:
        written = piece.values_N.numpy().view(np.int32)
        for start in range(0, len(written), len(words)):
            wanted = written[start : start + len(words)]
            chunk = memory[: wanted.nbytes]
            count = file.readinto(chunk)  # type: ignore[attr-defined]  # files have it
            if count < wanted.nbytes or not np.array_equal(words[: len(wanted)], wanted):
                raise _OtherBytesError
            read(chunk)
    if file.read(1):
        raise _OtherBytesError


def _forget_cached(path: Path) -> None:
    """Drop the file from the page cache, so that the next read comes from the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
