"""The files that one rank adds to a checkpoint, on the disk and read back."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from showo_dist.training.checkpoint.folders import sync
from showo_dist.training.checkpoint.manifest import FileEntry
from showo_dist.training.checkpoint.reader import MODEL, OPTIMIZER
from showo_dist.training.checkpoint.slices import WEIGHT, Piece, Placed


@dataclass(frozen=True)
class Part:
    """What a rank wrote: its files and the pieces in them."""

    files: dict[str, FileEntry]
    placed: list[Placed]


def write_part(folder: Path, pieces: Iterable[Piece], rank: int, world: int) -> Part:
    """Write a rank's pieces, weights apart from moments, and read them back from the disk.

    Raises:
        OSError: they cannot be written, or the disk gives back something else.
    """
    grouped: dict[str, list[Piece]] = {MODEL: [], OPTIMIZER: []}
    for piece in pieces:
        grouped[MODEL if piece.kind == WEIGHT else OPTIMIZER].append(piece)
    part = Part({}, [])
    for prefix, group in grouped.items():
        if group:
            name = f"{prefix}-{rank + 1:05d}-of-{world:05d}.safetensors"
            part.files[name] = _write(folder / name, group)
            part.placed.extend(piece.placed_in(name) for piece in group)
    return part


def _write(path: Path, pieces: list[Piece]) -> FileEntry:
    try:
        save_file({piece.key: piece.stored() for piece in pieces}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors gives them to nobody else
    sync(path)
    _forget_cached(path)
    entry = FileEntry.of(path)
    with safe_open(path, framework="pt") as file:
        for piece in pieces:
            if not _same_bytes(file.get_tensor(piece.key), piece.stored()):
                raise OSError(f"{path}: the disk gives back other bytes than were written")
    return entry


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    """Bytes, not numbers: a value that is not a number is no fault of the disk."""
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


def _forget_cached(path: Path) -> None:
    """Make the next read come from the disk, where the system allows it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
