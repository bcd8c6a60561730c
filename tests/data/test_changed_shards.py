"""A shard that changes under its name is indexed anew, or its samples are skipped: never other bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from showo_data import FlowSpec, Sample, Skipped, Source
from showo_data.shards import OpenShards, Storage, index_path, load_index, load_table, write_shard
from tests.data.server import FaultyServer, serving

# Texts of two shards of the same padded size: changed at the first, the middle, the last sample, or all.
OLD = ("one", "a text of three", "two words", "four")
NEW = (
    ("one, and another", "a text of three", "two words", "four"),
    ("one", "of five", "two words and more", "four"),
    ("one", "a text of three", "two words", "four and the rest"),
    ("now all", "texts are", "others, and much", "longer than before"),
)


def _write(path: Path, texts: tuple[str, ...]) -> str:
    write_shard(path, [{"__key__": f"k{i}", "txt": text} for i, text in enumerate(texts)])
    return str(path)


def _spec(*urls: str, **options: object) -> FlowSpec:
    options = {"streams": 1, "window": 1, "batch": 1, **options}
    return FlowSpec(flow="f", kind="text", urls=urls, **options)  # type: ignore[arg-type]


def _read(source: Source) -> list[str | None]:
    """Texts in order; a sample that is skipped must be so because its shard changed."""
    items = [source[position] for position in range(len(source))]
    assert {item.reason for item in items if isinstance(item, Skipped)} <= {"changed-shard"}
    return [item.text if isinstance(item, Sample) else None for item in items]


def _copy(new: Path, shard: Path) -> None:
    shard.write_bytes(new.read_bytes())


def _move(new: Path, shard: Path) -> None:
    """Put a file with an older time there."""
    os.utime(new, (10**9, 10**9))
    new.replace(shard)


def _copy_with_time(new: Path, shard: Path) -> None:
    """Keep even the time of the old shard; only the headers differ."""
    before = shard.stat().st_mtime_ns
    shard.write_bytes(new.read_bytes())
    os.utime(shard, ns=(before, before))


@pytest.mark.parametrize("texts", NEW)
@pytest.mark.parametrize("replace", [_copy, _move])
def test_a_shard_that_replaces_another_is_indexed_anew(
    tmp_path: Path, texts: tuple[str, ...], replace: Callable[[Path, Path], None]
) -> None:
    shard, new = _write(tmp_path / "a.tar", OLD), _write(tmp_path / "b.tar", texts)
    before = load_index(shard)[0]
    assert before.size == os.path.getsize(new), "only the content tells them apart"
    replace(Path(new), Path(shard))
    assert load_index(shard)[0].sha256 != before.sha256
    assert _read(Source(_spec(shard))) == list(texts)


@pytest.mark.parametrize("texts", [NEW[0], NEW[2], NEW[3]])
def test_the_headers_at_both_ends_are_compared(tmp_path: Path, texts: tuple[str, ...]) -> None:
    shard, new = _write(tmp_path / "a.tar", OLD), _write(tmp_path / "b.tar", texts)
    _copy_with_time(Path(new), Path(shard))
    assert _read(Source(_spec(shard))) == list(texts)


@pytest.mark.parametrize("texts", NEW)
@pytest.mark.parametrize("replace", [_copy, _move, _copy_with_time])
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_change_during_a_run_is_never_read_as_other_bytes(
    tmp_path: Path,
    texts: tuple[str, ...],
    replace: Callable[[Path, Path], None],
    is_open: bool,
    indexed: bool,
) -> None:
    shard, new = _write(tmp_path / "a.tar", OLD), _write(tmp_path / "b.tar", texts)
    source = Source(_spec(shard))
    if is_open:
        assert isinstance(source[0], Sample)
    replace(Path(new), Path(shard))
    if indexed:
        load_index(shard)
    for old, now, found in zip(OLD, texts, _read(source), strict=True):
        # A file that was replaced stays readable while it is open; a member may be the same in both.
        assert found in (old, now, None)
        assert found is None or is_open or (found == old == now)


def test_a_change_in_the_middle_with_the_same_time_is_found_when_read(tmp_path: Path) -> None:
    shard, new = _write(tmp_path / "a.tar", OLD), _write(tmp_path / "b.tar", NEW[1])
    _copy_with_time(Path(new), Path(shard))
    assert _read(Source(_spec(shard))) == ["one", None, None, "four"]


def test_an_index_of_an_older_version_is_built_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = _write(tmp_path / "a.tar", OLD)
    data = index_path(shard).read_bytes()
    index_path(shard).write_bytes(data.replace(b'\\"version\\": 4', b'\\"version\\": 3'))
    assert index_path(shard).read_bytes() != data
    modified = os.stat(shard).st_mtime_ns
    os.utime(index_path(shard), ns=(modified, modified))
    assert _read(Source(_spec(shard))) == list(OLD)
    assert f"shard {shard} has no valid index" in caplog.text
    assert index_path(shard).read_bytes() == data


def test_a_copy_that_keeps_times_keeps_its_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = _write(tmp_path / "a.tar", OLD)
    other = str(tmp_path / "b.tar")
    for source, target in ((shard, other), (index_path(shard), index_path(other))):
        Path(target).write_bytes(Path(source).read_bytes())
        modified = os.stat(source).st_mtime_ns
        os.utime(target, ns=(modified, modified))
    assert load_index(other)[0].sha256 == load_index(shard)[0].sha256
    assert caplog.text == ""


@pytest.mark.parametrize("length", [9, 70_000])
def test_other_contents_under_the_same_headers_are_no_copy(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As in shards of codes that were encoded by another network."""
    shard = _write(tmp_path / "a.tar", ("x" * length,) * 9)
    before = load_index(shard)[0]
    other = _write(tmp_path / "b.tar", ("y" * length,) * 9)
    _copy(Path(other), Path(shard))
    assert load_index(shard)[0].sha256 == load_index(other)[0].sha256 != before.sha256
    assert "has no valid index" in caplog.text


def _swap(server: FaultyServer, name: str, texts: tuple[str, ...]) -> None:
    new = _write(server.folder / "new.tar", texts)
    Path(new).replace(server.folder / name)
    index_path(str(server.folder / name)).unlink()


@pytest.mark.parametrize("texts", NEW)
@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_change_on_a_server_is_never_read_as_other_bytes(
    tmp_path: Path, texts: tuple[str, ...], etags: bool, cache_gb: float
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    _write(folder / "a.tar", OLD)
    storage = Storage(cache_dir=str(tmp_path / "cache"), cache_gb=cache_gb, retries=0)
    with serving(folder) as server:
        server.etags = etags
        spec = _spec(f"{server.url}/a.tar", storage=storage)
        assert load_index(spec.urls, storage)
        _swap(server, "a.tar", texts)
        found = _read(Source(spec))
        for old, now, text in zip(OLD, texts, found, strict=True):
            assert text is None or text == old == now
        if etags or cache_gb:
            assert found == [None] * 4
            assert _read(Source(spec)) == list(texts), "the next run indexes it anew"


def test_a_cached_copy_of_an_older_version_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    _write(folder / "a.tar", OLD)
    storage = Storage(cache_dir=str(tmp_path / "cache"), cache_gb=1.0, retries=0)
    with serving(folder) as server:
        url = f"{server.url}/a.tar"
        assert _read(Source(_spec(url, storage=storage))) == list(OLD)
        _swap(server, "a.tar", NEW[1])
        next((tmp_path / "cache" / "index").glob("*.safetensors")).unlink()
        assert _read(Source(_spec(url, storage=storage))) == list(NEW[1])


def test_a_reader_checks_the_place_that_it_was_told(tmp_path: Path) -> None:
    shard = _write(tmp_path / "a.tar", OLD)
    files, member = OpenShards(), load_table(shard).members(1)[0]
    assert files.read(shard, member) == b"a text of three"
    with pytest.raises(OSError, match="changed at byte"):
        files.read(shard, member._replace(offset=member.offset + 512))
    files.close()
