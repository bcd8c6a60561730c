"""The table of samples of a shard, from one pass over the tar.

Letters: N samples, M members.
"""

import os
import tarfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

# Extension of the only member of a sample that marks a damaged part of the shard.
DAMAGED = "damaged"
# Size of a member that is stored sparse (tar -S): its bytes in the tar are not those of the file.
SPARSE = -1
# Size of a symbolic link, and of a hard link to a file that is not before it: its bytes are not in the tar.
LINK = -2
BLOCK = tarfile.BLOCKSIZE

_LONGEST = 16 << 20  # bytes of an extension header, which holds a long name or PAX records
_LARGEST = 1 << 50  # bytes of a member; a larger size is a damaged header
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)


class Member(NamedTuple):
    """One file in a shard.

    Attributes:
        extension: behind the first dot of its name.
        offset, size: bytes in the shard; size :data:`SPARSE` if it is stored sparse, :data:`LINK` if it is a
            link without its file.
        check: CRC-32 of the tar header, which is the block before ``offset``. A shard that was changed
            in place has other bytes there.
    """

    extension: str
    offset: int
    size: int
    check: int


@dataclass(frozen=True, slots=True)
class ShardTable:
    """Keys and members of the samples of one shard, in 20 to 44 bytes per member.

    Attributes:
        key_bytes: the keys of all samples, end to end.
        key_ends_N: end of each sample's key in ``key_bytes``.
        member_ends_N: end of each sample's members in the arrays of members.
        extensions: the different extensions.
        extension_M: number of each member's extension in ``extensions``.
        offset_M, size_M, check_M: of each member, as in :class:`Member`.
    """

    key_bytes: npt.NDArray[np.uint8]
    key_ends_N: Integers
    member_ends_N: Integers
    extensions: tuple[str, ...]
    extension_M: npt.NDArray[np.unsignedinteger[Any]]
    offset_M: Integers
    size_M: Integers
    check_M: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.key_ends_N)

    def key(self, sample: int) -> str:
        """Return the key of sample number ``sample``; bytes that are not UTF-8 as ``\\xff``, to differ."""
        first = int(self.key_ends_N[sample - 1]) if sample else 0
        key = self.key_bytes[first : int(self.key_ends_N[sample])].tobytes()
        return key.decode("utf-8", "backslashreplace")

    def members(self, sample: int) -> list[Member]:
        """Return the members of sample number ``sample``, in the order of the shard."""
        first = int(self.member_ends_N[sample - 1]) if sample else 0
        return [
            Member(
                self.extensions[self.extension_M.item(m)],
                self.offset_M.item(m),
                self.size_M.item(m),
                self.check_M.item(m),
            )
            for m in range(first, int(self.member_ends_N[sample]))
        ]


def scan(stream: BinaryIO) -> tuple[ShardTable, list[str]]:
    """Group the files of a tar into samples by their key, wherever in the tar they are.

    Returns:
        The table of the samples, and the names of the files that belong to none, without an extension. Names
        that begin with a dot are left out, such as the ``._*`` files of macOS.

    Where the tar cannot be read (it ends early, or a header is damaged), reading continues at the next intact
    header. Each such part becomes a sample with one empty member, :data:`DAMAGED`, so that it is counted as a
    bad sample in training.
    """
    samples: dict[str, list[Member]] = {}
    unnamed = []
    for name, offset, size, check in _entries(stream):
        folder, base = os.path.split(name)
        stem, _, extension = base.partition(".")
        if stem and extension:
            key = f"{folder}/{stem}" if folder else stem
            samples.setdefault(key, []).append(Member(extension.lower(), offset, size, check))
        elif stem:
            unnamed.append(name)
    return _as_table(samples), unnamed


def is_header(block: bytes) -> bool:
    """Whether ``block`` is an intact tar header."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _as_table(samples: dict[str, list[Member]]) -> ShardTable:
    members = [member for group in samples.values() for member in group]
    extensions = sorted({member.extension for member in members})
    number = {extension: i for i, extension in enumerate(extensions)}
    keys = [key.encode("utf-8", "surrogateescape") for key in samples]
    # Names with several dots may give every member an extension of its own.
    small = np.uint16 if len(extensions) <= 1 << 16 else np.uint32
    return ShardTable(
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_ends_N=np.cumsum([len(key) for key in keys], dtype=np.int64),
        member_ends_N=np.cumsum([len(group) for group in samples.values()], dtype=np.int64),
        extensions=tuple(extensions),
        extension_M=np.array([number[member.extension] for member in members], dtype=small),
        offset_M=np.array([member.offset for member in members], dtype=np.int64),
        size_M=np.array([member.size for member in members], dtype=np.int64),
        check_M=np.array([member.check for member in members], dtype=np.uint32),
    )


class File(NamedTuple):
    """A file or link in a tar: its name, and the attributes of a :class:`Member`."""

    name: str
    offset: int
    size: int
    check: int


class _DamageError(Exception):
    """A tar cannot be read at byte ``args[0]``; intact headers may follow from byte ``args[1]`` on."""


def tar_files(stream: BinaryIO, start: int = 0, end: int | None = None) -> Iterator[File]:
    """Yield the files of a tar at bytes ``start`` to ``end`` of a stream, and its damaged parts.

    A hard link is the file that it names. A damaged part is an empty file with the extension :data:`DAMAGED`
    at the byte where it begins.
    """
    return (file for file in _entries(stream, start, end) if file.size != LINK)


def _entries(stream: BinaryIO, start: int = 0, end: int | None = None) -> Iterator[File]:
    """Yield the files of :func:`tar_files`, and the links without their file."""
    found = dict[str, File]()
    for file, target in _files(stream, start, end):
        if target is not None:
            file = found.get(target, file)._replace(name=file.name)
        found[file.name] = file
        yield file


def _files(stream: BinaryIO, start: int, end: int | None) -> Iterator[tuple[File, str | None]]:
    """Yield files, links and damaged parts, each with the name of the file that a hard link is."""
    length = stream.seek(0, os.SEEK_END)
    end = length if end is None else min(end, length)
    while True:
        try:
            damaged = yield from _intact_files(stream, start, end)
            resume = damaged + BLOCK
            at_end = True
        except _DamageError as damage:
            (damaged, resume), at_end = damage.args, False
        found = _next_header(stream, resume, end)
        # Zeros are the end of a tar, unless files follow: then a part was never written.
        if found is not None or not at_end:
            yield File(f"damaged-at-{damaged}.{DAMAGED}", damaged, 0, 0), None
        if found is None:
            return
        start = found


def _intact_files(
    stream: BinaryIO, start: int, last: int
) -> Generator[tuple[File, str | None], None, int]:
    """Yield the files and links from byte ``start`` on; returns the offset of the block of zeros at the end.

    Not ``tarfile``, which believes any number in a header: a negative size makes it loop, a large one
    allocate, and thousands of extension headers exceed its recursion.

    Raises:
        _DamageError: a header is damaged, or the tar, which ends at byte ``last``, ends early.
    """
    offset, records = start, dict[str, str]()  # records: of the extension headers before a file
    while True:
        stream.seek(offset)
        block = stream.read(min(BLOCK, max(0, last - offset)))
        if block == bytes(BLOCK):
            return offset
        data = offset + BLOCK
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.type in _EXTENSIONS:
                # The first header wins where several give the same record, as in tarfile.
                records = {**_extension(stream, header, last), **records}
                offset = data + _padded(header.size)
                continue
            size = _number(records["size"]) if "size" in records else header.size
            has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
            if has_data and not 0 <= size < _LARGEST:
                raise ValueError(f"a size of {size}")
            if header.type == tarfile.GNUTYPE_SPARSE:
                data = _after_sparse_map(stream, block)
        except (tarfile.HeaderError, ValueError):
            raise _DamageError(offset, offset + BLOCK) from None
        name = records.get("GNU.sparse.name") or records.get("path") or header.name
        if header.isreg():
            sparse = header.type == tarfile.GNUTYPE_SPARSE or any(
                keyword.startswith("GNU.sparse.") for keyword in records
            )
            yield File(name, data, SPARSE if sparse else size, zlib.crc32(block)), None
        elif header.issym() or header.islnk():
            target = (records.get("linkpath") or header.linkname) if header.islnk() else None
            yield File(name, data, LINK, zlib.crc32(block)), target
        end = data + (_padded(size) if has_data else 0)
        if end > last:  # the tar was cut here, or the size is wrong and intact files follow
            raise _DamageError(offset, data)
        offset, records = end, {}


def _extension(stream: BinaryIO, header: tarfile.TarInfo, last: int) -> dict[str, str]:
    """Read the records of an extension header, for the file behind it.

    Raises:
        ValueError: they cannot be right.
    """
    if not 0 <= header.size <= min(_LONGEST, last - stream.tell()):
        raise ValueError(f"an extension header of {header.size} bytes")
    content = stream.read(header.size)
    if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        keyword = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
        return {keyword: content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    if header.type == tarfile.XGLTYPE:  # for all files that follow; no program uses it for names
        return {}
    return _pax_records(content)


def _pax_records(content: bytes) -> dict[str, str]:
    """Parse the records of a PAX header, "LENGTH KEYWORD=VALUE\\n" each.

    Raises:
        ValueError: they cannot be right.
    """
    records, place = dict[str, str](), 0
    while content[place : place + 1].isdigit():
        digits = content[place : place + 20].partition(b" ")[0]
        end = place + _number(digits.decode("ascii"))
        keyword, equals, value = content[place + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or not place < end <= len(content):
            raise ValueError("a broken PAX record")
        records[keyword.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        place = end
    return records


def _number(digits: str) -> int:
    """Read a number of at most 19 digits, which int64 holds.

    Raises:
        ValueError: it is something else.
    """
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ValueError(f"not a number: {digits[:20]!r}")
    return int(digits)


def _after_sparse_map(stream: BinaryIO, block: bytes) -> int:
    """Return where the data of a sparse file in GNU's old format begin, behind its map."""
    continued = block[482]
    while continued:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise ValueError("a sparse map without end")
        continued = block[504]
    return stream.tell()


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _next_header(stream: BinaryIO, start: int, end: int) -> int | None:
    """Return the byte offset of the next intact header before ``end``; None if there is none."""
    stream.seek(start)
    for offset in range(start, end - BLOCK + 1, BLOCK):
        block = stream.read(BLOCK)
        if block[257:262] == b"ustar" and is_header(block):
            return offset
    return None
