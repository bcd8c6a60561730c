"""Recognize files that are no tars, although they have a shard's name."""

import os
from tarfile import RECORDSIZE
from typing import BinaryIO

from showo_data.shards.tables import BLOCK, DAMAGED, LINK, ShardTable, is_header

_UNPACK = "decompress it, since members of a compressed tar have no byte offset"
_AGAIN = "fetch it again"
DEREFERENCE = "make it with tar -h, which stores the files that links name"
# How a file begins, in lower case; what it is; what to do.
_KNOWN = (
    (b"\x1f\x8b", "a gzip file", f"{_UNPACK} (gunzip)"),
    (b"bzh", "a bzip2 file", _UNPACK),
    (b"\xfd7zxz\0", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"\x04\x22\x4d\x18", "an lz4 file", _UNPACK),
    (b"pk\x03\x04", "a zip file", "make a tar of its files"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", "make a tar of its files"),
    (b"version https://git-lfs", "a git-LFS pointer", "run `git lfs pull` where it is from"),
    (b"<!doctype html", "an HTML page", f"{_AGAIN}, from an address that gives the file"),
    (b"<html", "an HTML page", f"{_AGAIN}, from an address that gives the file"),
    (b"<?xml", "an XML page, as stores send for errors", _AGAIN),
    (b"par1", "a Parquet file", "convert it: `showo-dist shards from-parquet` or `from-text`"),
    (b"{", "JSON", "convert it: `showo-dist shards from-text` or `from-llava`"),
    (b"[", "JSON", "convert it: `showo-dist shards from-text` or `from-llava`"),
)


class NotATarError(ValueError):
    """A file that is read as a shard is no tar of samples; the message says what it is and what to do."""


def refuse_foreign(shard: str, stream: BinaryIO) -> None:
    """Check the beginning of a shard.

    Raises:
        NotATarError: the file is empty, or begins as a file of another format.
    """
    stream.seek(0)
    first = stream.read(BLOCK)
    if not first:
        raise NotATarError(f"{shard} is empty (0 bytes), not a tar: {_AGAIN}")
    if is_header(first):
        return
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").lower()
    for magic, what, remedy in _KNOWN:
        if start.startswith(magic):
            raise NotATarError(f"{shard} is {what}, not a tar: {remedy}")


def refuse_without_samples(
    shard: str, stream: BinaryIO, table: ShardTable, unnamed: list[str]
) -> None:
    """Check what :func:`showo_data.shards.tables.scan` found; an empty tar of usual size is allowed.

    Raises:
        NotATarError: the file holds zeros only, no intact header of a tar at all, only links, or only files
            without an extension.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if table.extensions == (DAMAGED,) and len(table) == 1 and not table.offset_M[0]:
        raise NotATarError(
            f"{shard} is not a tar: its {size} bytes hold no intact header of one; {_AGAIN}"
        )
    if not len(table) and size > RECORDSIZE and not any(stream.read(BLOCK)):
        raise NotATarError(f"{shard} holds {size} bytes of zeros, not a tar: {_AGAIN}")
    if len(table) and (table.size_M == LINK).all():
        raise NotATarError(f"{shard} holds only links, without their files: {DEREFERENCE}")
    if not len(table) and unnamed:
        raise NotATarError(
            f"{shard} holds no samples: its {len(unnamed)} files have no extension, such as "
            f"{unnamed[0]!r}; name them KEY.EXTENSION"
        )
