"""Files that are no tars are refused when indexed, with what they are; a lost shard weighs what it held."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from showo_data import BadSamples, FlowSpec, Sample, Skipped, Source
from showo_data.cli import main_shards
from showo_data.shards import NotATarError, build_index, index_path, load_index, write_shard


def _tar(count: int = 8) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for i in range(count):
            entry = tarfile.TarInfo(f"k{i}.txt")
            entry.size = 600
            tar.addfile(entry, io.BytesIO(b"x" * 600))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n"
FOREIGN = {
    "empty": (b"", r"empty \(0 bytes\).*fetch it again"),
    "gzip": (gzip.compress(_tar()), "a gzip file.*gunzip"),
    "bzip2": (bz2.compress(_tar()), "a bzip2 file.*decompress"),
    "xz": (lzma.compress(_tar()), "an xz file.*decompress"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(900), "a zstd file.*decompress"),
    "zip": (_zip(), "a zip file"),
    "pointer": (LFS, "a git-LFS pointer.*git lfs pull"),
    "page": (b"\r\n<!DOCTYPE HTML><html>404</html>", "an HTML page"),
    "long page": (b"\xef\xbb\xbf<html>" + b"words " * 1000, "an HTML page"),
    "error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML page"),
    "json lines": (b'{"text": "a"}\n' * 200, "JSON.*shards from-text"),
    "LLaVA": (b'[\n{"image": "a.jpg"}]', "JSON.*from-llava"),
    "parquet": (b"PAR1" + bytes(2000), "a Parquet file"),
    "words": (b"Not found", "no intact header"),
    "noise": (bytes(range(1, 256)) * 90, "no intact header"),
    "zeros": (bytes(1 << 20), "1048576 bytes of zeros"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_tar_is_refused_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = FOREIGN[name]
    shard = tmp_path / "a.tar"
    shard.write_bytes(content)
    for act in (load_index, build_index):
        with pytest.raises(NotATarError, match=f"(?s){shard}.*{message}") as caught:
            act(str(shard))
        assert "\n" not in str(caught.value)
    assert not index_path(str(shard)).exists()
    assert main_shards(["verify", str(shard)]) == 1
    assert "sound" not in capsys.readouterr().out


def test_all_bad_shards_are_named_in_one_line(tmp_path: Path) -> None:
    """A user who mends them one by one would start the run for each of them."""
    for number in range(14):
        content = LFS if number % 7 else _tar()
        (tmp_path / f"{number:02d}.tar").write_bytes(content)
    pattern = f"{tmp_path}/{{00..13}}.tar"
    for act in (load_index, build_index, lambda urls: main_shards(["index", urls])):
        with pytest.raises(NotATarError) as caught:
            act(pattern)
        message = str(caught.value)
        assert message.startswith("12 shards cannot be used: ") and "\n" not in message
        assert message.endswith("; and 4 more") and message.count("a git-LFS pointer") == 8
        assert all(f"{tmp_path}/{number:02d}.tar is" in message for number in (1, 2, 6, 8, 9))
    assert index_path(f"{tmp_path}/07.tar").exists(), "the sound ones are indexed meanwhile"


def test_an_old_index_does_not_hide_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(_tar())
    load_index(str(shard))
    shard.write_bytes(LFS)
    assert main_shards(["verify", str(shard)]) == 1
    assert f"{shard}: is a git-LFS pointer" in capsys.readouterr().out
    with pytest.raises(NotATarError):
        Source(FlowSpec(flow="f", kind="text", urls=(str(shard),), batch=1))


def test_empty_tars_and_unusual_ones_are_still_tars(tmp_path: Path) -> None:
    for name, options in {"v7": {"format": tarfile.USTAR_FORMAT}, "none": {}}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w", **options) as tar:  # type: ignore[call-overload]
            if name != "none":
                tar.addfile(tarfile.TarInfo("a.txt"))
    assert load_index(str(tmp_path / "none.tar"))[0].samples == 0
    assert load_index(str(tmp_path / "v7.tar"))[0].samples == 1


def test_a_hole_of_zeros_is_a_damaged_part(tmp_path: Path) -> None:
    shard, data = tmp_path / "a.tar", bytearray(_tar())
    data[2 * 1536 : 4 * 1536] = bytes(2 * 1536)
    shard.write_bytes(data)
    source = Source(FlowSpec(flow="f", kind="text", urls=(str(shard),), batch=1))
    items = [source[p] for p in range(len(source))]
    assert Counter(getattr(item, "reason", "good") for item in items) == {
        "good": 6,
        "damaged-shard": 1,
    }
    assert main_shards(["verify", str(shard)]) == 1


def _drawn(urls: list[str], count: int) -> list[Sample | Skipped]:
    spec = FlowSpec(
        flow="f", kind="text", urls=tuple(urls), batch=1, window=1, sampling="resampled"
    )
    source = Source(spec)
    return [source[p] for p in range(count)]


@pytest.mark.parametrize("content", [b"", LFS, b"<html>404</html>"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_lost_shard_weighs_its_samples_when_resampling(
    tmp_path: Path, content: bytes, indexed: bool
) -> None:
    urls = [str(tmp_path / f"{i}.tar") for i in range(5)]
    for url in urls:
        write_shard(url, [{"__key__": f"k{i}", "txt": "words"} for i in range(40)])
        if not indexed:
            index_path(url).unlink()
    for url in urls[1:]:
        Path(url).write_bytes(content)
    bad = BadSamples()
    for item in _drawn(urls, 3000):
        bad.add([item] if isinstance(item, Skipped) else [], good=isinstance(item, Sample))
    assert 0.7 < bad.total / bad.tried < 0.9 and bad.exceeds(0.5), "four of five shards are lost"


def test_a_shard_that_breaks_off_weighs_the_rest(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": f"k{i}", "txt": "x" * 600} for i in range(40)])
    os.truncate(shard, 10 * 1536 + 700)
    skipped = [item for item in _drawn([str(shard)], 30) if isinstance(item, Skipped)]
    assert {(item.reason, item.samples) for item in skipped} == {("damaged-shard", 34)}


@pytest.mark.parametrize(
    ("damage", "good", "lost"),
    [
        (lambda a, b: a[: 11 * 1024] + b"\xff" * 512 + a[11 * 1024 + 512 :], 39, 1),
        (lambda a, b: a[: 5 * 2048], 5, 35),  # a PAX header, a header and a text take 2048 bytes
        (lambda a, b: a + b, 80, 1),
    ],
    ids=["header", "cut between members", "two tars in one file"],
)
def test_resampling_reads_on_behind_damage(
    tmp_path: Path, damage: Callable[[bytes, bytes], bytes], good: int, lost: int
) -> None:
    """As much of a shard as the exact order reads; the rest is counted whenever the shard is drawn."""
    shard, other = tmp_path / "a.tar", tmp_path / "b.tar"
    for path in (shard, other):
        keys = [f"{path.stem}{i}" for i in range(40)]
        write_shard(path, [{"__key__": key, "txt": f"text {key}"} for key in keys])
    shard.write_bytes(damage(shard.read_bytes(), other.read_bytes()))
    items = _drawn([str(shard)], 4 * (good + 1))
    assert len({item.text for item in items if isinstance(item, Sample)}) == good
    skipped = [(item.reason, item.samples) for item in items if isinstance(item, Skipped)]
    assert skipped == [("damaged-shard", lost)] * 4


def test_resampling_names_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(_tar()))
    (item,) = _drawn([str(tmp_path / "a.tar")], 1)
    assert isinstance(item, Skipped) and item.reason == "damaged-shard"
    assert "a gzip file" in item.detail and "gunzip" in item.detail


@pytest.mark.usefixtures("time_limit")
def test_resampling_of_empty_shards_ends(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "a.tar", "w").close()
    (item,) = _drawn([str(tmp_path / "a.tar")], 1)
    assert isinstance(item, Skipped) and item.reason == "empty-shard"
