"""Numbers in a tar are checked, sparse members are refused; sound tars are read as tarfile reads them."""

import io
import os
import random
import struct
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest

from showo_data import FlowSpec, Sample, Skipped, Source
from showo_data.shards import (
    LINK,
    NotATarError,
    OpenShards,
    Storage,
    index,
    index_path,
    load_index,
    load_table,
    verify,
)

pytestmark = pytest.mark.usefixtures("time_limit")


def _header(name: str, size: int, kind: bytes = b"0", size_field: bytes = b"") -> bytes:
    """A header with a right checksum, whatever it claims."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size_field or b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _file(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    return _header(name, len(data), kind) + data + bytes(-len(data) % 512)


def _binary(size: int) -> bytes:
    """A size field in base 256, as GNU tar writes those above 8 GB."""
    return bytes([0x80 if size >= 0 else 0xFF]) + (size % (1 << 88)).to_bytes(11, "big")


def _pax(content: bytes) -> bytes:
    return _file("pax", content, b"x")


def _record(keyword: str, value: str) -> bytes:
    body = f" {keyword}={value}\n".encode()
    length = len(body) + len(str(len(body) + 3))
    return str(length).encode() + body


END = bytes(1024)
GOOD = [_file(f"k{i}.txt", b"text %d" % i) for i in range(6)]
HOSTILE = {
    "negative size": _header("x.txt", 0, size_field=_binary(-1024)),
    "size of a negative step to the start": _header("x.txt", 0, size_field=_binary(-2048)),
    "8 EB": _header("x.txt", 0, size_field=_binary(1 << 63)),
    "2^87 bytes": _header("x.txt", 0, size_field=_binary((1 << 87) - 1)),
    "2 TB": _header("x.txt", 0, size_field=_binary(2 << 40)),
    "8 GB": _header("x.txt", (1 << 33) - 1),
    "negative name": _header("x", 0, b"L", _binary(-512)),
    "name of 8 GB": _header("x", (1 << 33) - 1, b"L"),
    "PAX of 8 GB": _header("x", (1 << 33) - 1, b"x"),
    "negative PAX": _header("x", 0, b"x", _binary(-1)),
    "PAX length of 5,000 digits": _pax(b"9" * 5000 + b" path=x.txt\n") + _file("x.txt", b"x"),
    "PAX size of 5,000 digits": _pax(_record("size", "9" * 5000)) + _file("x.txt", b"x"),
    "negative PAX size": _pax(_record("size", "-512")) + _file("x.txt", b"x"),
    "PAX size that is a word": _pax(_record("size", "inf")) + _file("x.txt", b"x"),
    "PAX record of no length": _pax(b"0 path=x.txt\n") + _file("x.txt", b"x"),
    "PAX record beyond its end": _pax(b"999 path=x.txt\n") + _file("x.txt", b"x"),
    "sparse map without end": _header("x.txt", 0, b"S")[:482] + b"\1" + bytes(29),
    "3,000 PAX headers": _pax(_record("path", "x.txt")) * 3000 + _file("y.txt", b"x"),
    "3,000 long names": _file("L", b"x.txt\0", b"L") * 3000 + _file("y.txt", b"x"),
    "global headers": _file("g", _record("size", "1"), b"g") * 3,
    "unknown type": _file("x.txt", b"x" * 700, b"Z"),
    "volume label": _file("x.txt", b"", b"V"),
    "a link with a size": _header("x.txt", 1 << 30, b"2"),
}


def _source(path: Path, content: bytes) -> Source:
    path.write_bytes(content)
    return Source(FlowSpec(flow="f", kind="text", urls=(str(path),), batch=1, streams=1, window=1))


def _texts(source: Source) -> Counter[str]:
    items = [source[p] for p in range(len(source))]
    assert not any(isinstance(i, Skipped) and i.reason == "unexpected-error" for i in items)
    return Counter(i.text or "" for i in items if isinstance(i, Sample))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_one_hostile_header_costs_no_other_sample(tmp_path: Path, name: str, place: int) -> None:
    content = b"".join([*GOOD[:place], HOSTILE[name], *GOOD[place:], END])
    begun = time.monotonic()
    texts = _texts(_source(tmp_path / "a.tar", content))
    assert time.monotonic() - begun < 5
    lost = sum(texts[f"text {i}"] == 0 for i in range(6))
    assert lost == 0, texts
    assert set(texts) <= {*(f"text {i}" for i in range(6)), "x"}


def test_a_claimed_size_takes_no_memory(tmp_path: Path) -> None:
    source = _source(tmp_path / "a.tar", HOSTILE["2 TB"] + GOOD[0] + END)
    reasons = Counter(getattr(source[p], "reason", "good") for p in range(len(source)))
    assert reasons == {"good": 1, "truncated": 1, "damaged-shard": 1}


def test_very_many_extensions(tmp_path: Path) -> None:
    """Each file name with several dots gives its member an extension of its own."""
    count = 70_000
    data = b"".join(_file(f"k{i // 2}.{i}.txt", b"%d" % i) for i in range(count)) + END
    (tmp_path / "a.tar").write_bytes(data)
    shard = str(tmp_path / "a.tar")
    assert load_index(shard)[0].samples == count // 2
    table, files = load_table(shard), OpenShards()
    for sample in (0, 1, 33_000, count // 2 - 1):
        first, second = table.members(sample)
        assert (first.extension, second.extension) == (f"{2 * sample}.txt", f"{2 * sample + 1}.txt")
        assert files.read(shard, second) == b"%d" % (2 * sample + 1)
    files.close()


def _sparse(folder: Path, form: str) -> bytes:
    """A tar of a sparse file between two others, as GNU tar makes it."""
    (folder / "a.txt").write_text("before")
    with (folder / "b.txt").open("wb") as stream:
        for i in range(40):  # more holes than a header has room for
            stream.seek(i * 65536)
            stream.write(b"island")
        stream.truncate(41 * 65536)
    (folder / "b.json").write_text('{"caption": "of b"}')
    (folder / "c.txt").write_text("after")
    names = ["a.txt", "b.txt", "b.json", "c.txt"]
    command = ["tar", "-S", *form.split(), "-cf", "s.tar", *names]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "s.tar").read_bytes()


FORMS = [
    "--format=gnu",
    "--format=pax --sparse-version=0.0",
    "--format=pax --sparse-version=0.1",
    "--format=pax --sparse-version=1.0",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_sparse_member_is_refused_and_the_others_are_read(tmp_path: Path, form: str) -> None:
    content = _sparse(tmp_path, form)
    assert len(content) < 500_000, "it is stored sparse"
    source = _source(tmp_path / "t.tar", content)
    items = [source[p] for p in range(len(source))]
    assert [getattr(item, "text", None) for item in items] == ["before", None, "after"]
    assert isinstance(items[1], Skipped)
    assert (items[1].key, items[1].reason) == ("b", "sparse-member")
    table = load_table(str(tmp_path / "t.tar"))
    assert [m.extension for m in table.members(1)] == ["txt", "json"]
    files, member = OpenShards(), table.members(1)[1]
    assert files.read(str(tmp_path / "t.tar"), member) == b'{"caption": "of b"}'
    files.close()


def _random_tar(rng: random.Random) -> bytes:
    """A sound tar of any format with names that need extension headers, folders and links."""
    stream = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    headers = {"comment": "é"} if form == tarfile.PAX_FORMAT else {}
    with tarfile.open(fileobj=stream, mode="w", format=form, pax_headers=headers) as tar:
        for i in range(rng.randrange(1, 12)):
            folder = "/".join(["d"] * rng.randrange(3))
            long = "é" * rng.choice((0, 1, 40 if form == tarfile.USTAR_FORMAT else 200))
            entry = tarfile.TarInfo(os.path.join(folder, f"k{i // 2}{long}.{i % 2}.txt"))
            entry.mtime = rng.choice((0, 1.5)) if form == tarfile.PAX_FORMAT else 0
            kinds = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
            entry.type = rng.choice((tarfile.REGTYPE,) * 5 + kinds) if i else tarfile.REGTYPE
            entry.linkname = "x" * rng.choice((1, 90)) if entry.issym() else ""
            if entry.islnk():
                entry.linkname = rng.choice([e.name for e in tar.getmembers() if e.isreg()])
            data = rng.randbytes(rng.choice((0, 1, 511, 512, 513, 3000))) if entry.isreg() else b""
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("seed", range(100))
def test_sound_tars_are_read_as_tarfile_reads_them(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_random_tar(random.Random(seed)))
    with tarfile.open(path, errors="surrogateescape") as tar:
        entries = [e for e in tar if e.isreg() or e.issym() or e.islnk()]
        files = [tar.getmember(e.linkname) if e.islnk() else e for e in entries]
        expected = {
            (e.name, file.offset_data, LINK if e.issym() else file.size)
            for e, file in zip(entries, files, strict=True)
        }
    load_index(str(path))
    table = load_table(str(path))
    found = {
        (f"{table.key(i)}.{m.extension}", m.offset, m.size)
        for i in range(len(table))
        for m in table.members(i)
    }
    assert found == expected


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_hard_link_is_its_file(tmp_path: Path, form: str) -> None:
    """GNU tar stores a file that has two names in a folder once."""
    names = [f"{name}{'x' * 120}.txt" for name in "ab"]
    (tmp_path / names[0]).write_text("of both")
    os.link(tmp_path / names[0], tmp_path / names[1])
    subprocess.run(["tar", f"--format={form}", "-cf", "s.tar", *names], cwd=tmp_path, check=True)
    content = (tmp_path / "s.tar").read_bytes()
    assert content.count(b"of both") == 1
    assert _texts(_source(tmp_path / "t.tar", content)) == {"of both": 2}
    assert list(verify(str(tmp_path / "t.tar"))) == [(str(tmp_path / "t.tar"), "")]


def test_links_without_their_file_are_counted(tmp_path: Path) -> None:
    """Symbolic links, and a hard link to what is not in the tar."""
    links = _header("s.txt", 0, b"2") + _header("h.txt", 0, b"1")
    source = _source(tmp_path / "a.tar", GOOD[0] + links + END)
    reasons = Counter(getattr(source[p], "reason", "good") for p in range(len(source)))
    assert reasons == {"good": 1, "link-member": 2}
    ((_, fault),) = verify(str(tmp_path / "a.tar"))
    assert fault.startswith("holds 2 links without their files: make it with tar -h")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_header("a.txt", 0, b"2"), "holds only links, without their files: make it with tar -h"),
        (_file("0001", b"x") * 2, "its 2 files have no extension, such as '0001'; name them KEY"),
    ],
)
def test_a_shard_without_samples_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(NotATarError, match=message):
        _source(tmp_path / "a.tar", content + END)
    assert not index_path(str(tmp_path / "a.tar")).exists()


def test_files_that_belong_to_no_sample_are_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ignored = _header("d/", 0, b"5") + _file("d/._k0.txt", b"x") + _file(".DS_Store", b"x")
    assert len(_source(tmp_path / "a.tar", GOOD[0] + ignored + END)) == 1
    assert "no extension" not in caplog.text
    assert len(_source(tmp_path / "b.tar", GOOD[0] + _file("d/README", b"x") + END)) == 1
    assert "1 files have no extension and belong to no sample, such as 'd/README'" in caplog.text


def test_verify_finds_an_index_that_lists_other_members(tmp_path: Path) -> None:
    """Older versions left hard links out."""
    shard, storage = str(tmp_path / "a.tar"), Storage()
    _source(tmp_path / "a.tar", GOOD[0] + GOOD[1] + END)
    _source(tmp_path / "b.tar", GOOD[0] + END)
    known, arrays = index._read(index_path(shard)), index._arrays(index_path(f"{tmp_path}/b.tar"))
    assert known is not None
    index._write(shard, storage, known, arrays, os.stat(shard).st_mtime_ns)
    ((_, fault),) = verify(shard)
    assert fault == "its index lists other members than it has: run `showo-dist shards index`"


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_counted(tmp_path: Path, seed: int) -> None:
    """Whatever happens to a shard, it ends with samples, reasons, or one line."""
    rng, path = random.Random(f"damage {seed}"), tmp_path / "a.tar"
    for _ in range(60):
        data = bytearray(_random_tar(rng))
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data))
            damage = rng.randrange(4)
            if damage == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif damage == 1:
                del data[place : place + rng.randrange(2000)]
            elif damage == 2:
                data[place : place + 12] = struct.pack(">Bxxxq", 0x80, rng.getrandbits(62))
            else:  # in a header, with a right checksum
                block = place // 512 * 512
                data[block + 124 : block + 136] = _binary(rng.randrange(-(1 << 70), 1 << 70))
                data[block + 148 : block + 156] = b" " * 8
                total = sum(data[block : block + 512])
                data[block + 148 : block + 156] = b"%06o\0 " % total
            if not data:
                break
        try:
            _texts(_source(path, bytes(data)))
        except ValueError as error:
            assert any(reason in str(error) for reason in ("not a tar", "no samples", "only links"))


def test_keys_that_are_not_utf8_stay_apart(tmp_path: Path) -> None:
    """Else ``encode`` would give two samples one key, and so make them one."""
    names = [b"k\xe9.txt", b"k\xe8.txt", "ké.txt".encode()]
    data = b"".join(_file(name.decode("utf-8", "surrogateescape"), b"x") for name in names)
    (tmp_path / "a.tar").write_bytes(data + END)
    (header,) = load_index(str(tmp_path / "a.tar"))
    table = load_table(header.path)
    assert [table.key(i) for i in range(len(table))] == ["k\\xe9", "k\\xe8", "ké"]


def test_the_index_of_a_shard_that_begins_and_ends_sparse_is_kept(tmp_path: Path) -> None:
    """The map of its holes is between the header and the data."""
    _sparse(tmp_path, "--format=gnu")
    command = ["tar", "-S", "--format=gnu", "-cf", "t.tar", "b.txt", "a.txt"]
    subprocess.run([*command, "c.txt", "--transform=s/c/d/", "b.txt"], cwd=tmp_path, check=True)
    shard = str(tmp_path / "t.tar")
    load_index(shard)
    before = index_path(shard).stat().st_ino
    load_index(shard)
    assert index_path(shard).stat().st_ino == before
