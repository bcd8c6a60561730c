"""Shards are real WebDataset tars, written all or nothing, and their index leads to every byte."""

import io
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset

from showo_data.shards import (
    DAMAGED,
    OpenShards,
    Storage,
    build_index,
    expand,
    index_path,
    load_index,
    load_table,
    tar_files,
    verify,
    write_shard,
)
from tests.data.converting import tar_of


def _samples(count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        yield {
            "__key__": f"k{i:03d}",
            "txt": f"text {i} é",
            "json": {"n": i},
            "bin": bytes([i] * i),
        }


def _tar(path: Path, files: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return str(path)


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        assert write_shard(tmp_path / name, _samples(5)) == 5
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert index_path(str(tmp_path / "a.tar")).read_bytes() == (
        index_path(str(tmp_path / "b.tar")).read_bytes()
    )


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", _samples(5))
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [f"k{i:03d}" for i in range(5)]
    assert read[3]["txt"].decode() == "text 3 é"
    assert read[3]["bin"] == bytes([3, 3, 3])


def test_a_failing_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from _samples(3)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_shard(tmp_path / "a.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_the_index_leads_to_every_byte(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, _samples(20))
    (header,) = load_index(str(shard))
    assert (header.samples, header.size) == (20, shard.stat().st_size)
    table, files = load_table(str(shard)), OpenShards()
    read = {
        f"{table.key(i)}.{member.extension}": files.read(str(shard), member)
        for i in range(len(table))
        for member in table.members(i)
    }
    with tarfile.open(shard) as tar:
        expected = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    assert read == expected
    files.close()


def test_members_are_grouped_by_key_wherever_they_are(tmp_path: Path) -> None:
    files = [
        ("d/a.x.npy", b"1"),
        ("d/b.txt", b"2"),
        ("d/a.txt", b"3"),
        ("plain", b"4"),
        (".hid", b""),
    ]
    shard = _tar(tmp_path / "a.tar", files)
    build_index(shard)
    table = load_table(shard)
    assert [table.key(i) for i in range(len(table))] == ["d/a", "d/b"]
    assert [member.extension for member in table.members(0)] == ["x.npy", "txt"]


def test_a_shard_without_index_is_indexed_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = _tar(tmp_path / "a.tar", [("a.txt", b"1")])
    with caplog.at_level(logging.WARNING):
        assert load_index(shard)[0].samples == 1
    assert f"shard {shard} has no valid index" in caplog.text
    caplog.clear()
    assert load_index(shard)[0].samples == 1
    assert caplog.text == ""


def test_an_index_of_an_older_shard_is_not_believed(tmp_path: Path) -> None:
    shard = str(tmp_path / "a.tar")
    write_shard(shard, _samples(3))
    old = index_path(shard).read_bytes()
    write_shard(shard, _samples(40))
    index_path(shard).write_bytes(old)
    assert [wrong for _, wrong in verify(shard)] != [""]
    assert load_index(shard)[0].samples == 40


@pytest.mark.parametrize("content", [b"", b"no index", bytes(8), b"\x02" + bytes(7) + b"{}"])
def test_a_broken_index_is_rebuilt(tmp_path: Path, content: bytes) -> None:
    shard = str(tmp_path / "a.tar")
    write_shard(shard, _samples(3))
    index_path(shard).write_bytes(content)
    assert load_index(shard)[0].samples == 3
    assert len(load_table(shard)) == 3


def test_verify_finds_a_flipped_byte(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, _samples(3))
    assert list(verify(str(shard))) == [(str(shard), "")]
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    ((_, wrong),) = verify(str(shard))
    assert "checksum" in wrong


@pytest.mark.parametrize(("keep", "samples"), [(512, 1), (700, 1), (5 * 512, 2)])
def test_a_truncated_shard_keeps_what_comes_before(tmp_path: Path, keep: int, samples: int) -> None:
    shard = _tar(tmp_path / "a.tar", [(f"k{i}.txt", b"x" * 600) for i in range(9)])
    os.truncate(shard, keep)
    (header,) = load_index(shard)
    table = load_table(shard)
    assert header.samples == samples + 1
    assert [table.key(i) for i in range(samples)] == [f"k{i}" for i in range(samples)]
    assert [member.extension for member in table.members(samples)] == [DAMAGED]


def test_a_flipped_header_costs_its_own_file_alone(tmp_path: Path) -> None:
    shard = Path(_tar(tmp_path / "a.tar", [(f"k{i}.txt", b"x" * 600) for i in range(9)]))
    data = bytearray(shard.read_bytes())
    data[3 * 1536 + 10] ^= 1  # in the fourth header: 512 bytes each, and 1024 of padded content
    shard.write_bytes(data)
    load_index(str(shard))
    table = load_table(str(shard))
    keys = [table.key(i) for i in range(len(table))]
    assert keys == ["k0", "k1", "k2", "damaged-at-4608", *(f"k{i}" for i in range(4, 9))]


def test_an_index_that_cannot_lie_beside_its_shard_is_cached(tmp_path: Path) -> None:
    shard = str(tmp_path / f"{'long' * 61}.tar")  # with its ending, the index exceeds a file name
    _tar(Path(shard), [("a.txt", b"1"), ("b.txt", b"2")])
    storage = Storage(cache_dir=str(tmp_path / "cache"))
    assert load_index(shard, storage)[0].samples == 2
    assert [p.suffix for p in (tmp_path / "cache" / "index").iterdir()] == [".safetensors"]
    assert load_table(shard, storage).key(1) == "b"
    assert list(verify(shard, storage)) == [(shard, "")]
    _tar(Path(shard), [(f"{i}.txt", b"1" * 9000) for i in range(3)])
    assert "of another size" in next(verify(shard, storage))[1]


def test_names_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    shard = _tar(tmp_path / "a.tar", [("a\udcff.txt", b"1"), ("b.txt", b"2")])
    assert load_index(shard)[0].samples == 2
    assert [load_table(shard).key(i) for i in range(2)] == ["a\\xff", "b"]


def test_patterns_expand_in_order(tmp_path: Path) -> None:
    for name in ("s-0", "s-1", "s-2", "other"):
        _tar(tmp_path / f"{name}.tar", [])
    found = expand([f"{tmp_path}/s-{{2..1}}.tar", f"{tmp_path}/{{other,s-0}}.tar"])
    assert [Path(name).stem for name in found] == ["s-2", "s-1", "other", "s-0"]


def test_a_missing_shard_is_named_with_its_pattern(tmp_path: Path) -> None:
    _tar(tmp_path / "s-0.tar", [])
    pattern = f"{tmp_path}/s-{{0..3}}.tar"
    with pytest.raises(FileNotFoundError) as caught:
        expand(pattern)
    message = str(caught.value)
    assert f"{tmp_path}/s-1.tar" in message and pattern in message and "3 of the 4" in message
    assert "\n" not in message


@pytest.mark.parametrize("urls", [[], "a-{0..3.tar"])
def test_unusable_lists_are_refused(urls: Any) -> None:
    with pytest.raises(ValueError, match=r"no shard is named|braces"):
        expand(urls)


def test_open_files_are_bounded_and_reopened(tmp_path: Path) -> None:
    shards = [str(tmp_path / f"{i}.tar") for i in range(6)]
    for shard in shards:
        write_shard(shard, _samples(4))
    files, before = OpenShards(limit=2), len(os.listdir("/proc/self/fd"))
    for shard in shards * 2:
        member = {m.extension: m for m in files.table(shard).members(2)}["txt"]
        assert files.read(shard, member).decode() == "text 2 é"
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tar_in_a_tar_ends_where_the_stream_does() -> None:
    """Its size stands in a header, which may be damaged: nothing is looked for behind the last byte."""

    class Counted(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            assert self.reads < 100
            return super().read(size)

    data = tar_of({"a.txt": b"x" * 600, "b.txt": b"y"})
    stream = Counted(bytes(512) + data[:1536] + b"\xff" * 512)
    found = [(file.name, file.offset) for file in tar_files(stream, 512, 1 << 45)]
    assert found == [("a.txt", 1024), (f"damaged-at-2048.{DAMAGED}", 2048)]
