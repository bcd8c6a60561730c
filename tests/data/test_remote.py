"""Shards on web servers, in object stores and behind commands: the same samples, whatever goes wrong once."""

import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from showo_data import BadSamples, FlowSpec, Sample, Skipped, Source, build_loader
from showo_data.cli import main_shards
from showo_data.shards import Storage, expand, load_index, verify, write_shard
from tests.data.server import FaultyServer, serving, serving_apart

pytestmark = pytest.mark.usefixtures("time_limit")

SHARDS, SAMPLES = 4, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards with an index, of 12 samples each, whose texts name them. Not to be changed."""
    folder = tmp_path_factory.mktemp("remote")
    for shard in range(SHARDS):
        samples = [
            {"__key__": f"{shard}-{i}", "bin": bytes(20_000), "txt": f"text {shard} {i}"}
            for i in range(SAMPLES)
        ]
        write_shard(folder / f"s-{shard}.tar", samples)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with serving(folder) as running:
        yield running


def _spec(base: str, storage: Storage, batch: int = 4) -> FlowSpec:
    urls = (f"{base}/s-{{0..{SHARDS - 1}}}.tar",)
    return FlowSpec(flow="f", kind="text", urls=urls, batch=batch, window=5, storage=storage)


def _epoch(source: Source) -> list[Sample | Skipped]:
    return [source[position] for position in range(SHARDS * SAMPLES)]


def _texts(items: list[Sample | Skipped]) -> list[str | None]:
    return [item.text if isinstance(item, Sample) else None for item in items]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str | None]:
    """The texts of one epoch, read from the files."""
    texts = _texts(_epoch(Source(_spec(str(folder), Storage()))))
    assert len(set(texts)) == SHARDS * SAMPLES
    return texts


@pytest.mark.parametrize("cache_gb", [0.0, 0.001, 1.0], ids=["ranges", "one-shard-cache", "cache"])
def test_a_web_server_gives_the_same_order(
    server: FaultyServer, tmp_path: Path, expected: list[str | None], cache_gb: float
) -> None:
    storage = Storage(cache_dir=str(tmp_path), cache_gb=cache_gb)
    assert _texts(_epoch(Source(_spec(server.url, storage)))) == expected


def _mishaps(path: str, before: int) -> int | float | str | None:
    """Two of three requests go wrong, in seven ways, never six times in a row."""
    if before % 6 == 5:
        return None
    draw = random.Random(f"{path}{before}")
    faults: tuple[int | float | str, ...] = (500, 503, 429, 403, 0.02, "cut", "lost")
    return draw.choice(faults) if draw.random() < 2 / 3 else None


def _epoch_of_rank(spec: FlowSpec, rank: int, world: int, workers: int) -> list[Sample]:
    """What one rank sees of an epoch, nothing skipped; its workers have ended on return."""
    batches = iter(build_loader([spec], rank=rank, world=world, num_workers=workers))
    seen = [next(batches) for _ in range(SHARDS * SAMPLES // (world * spec.batch))]
    assert not any(batch.skipped for batch in seen)
    del batches
    gc.collect()  # the loader is part of a circle, and its workers must not outlive the server
    return [sample for batch in seen for sample in batch.samples[spec.flow]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0], ids=["ranges", "cache"])
def test_passing_errors_lose_and_repeat_nothing(
    folder: Path, tmp_path: Path, expected: list[str | None], cache_gb: float, workers: int
) -> None:
    storage = Storage(cache_dir=str(tmp_path), cache_gb=cache_gb, retries=6, pause_s=0.001)
    with serving_apart(folder, _mishaps) as url:
        spec = _spec(url, storage)
        samples = [s for rank in range(2) for s in _epoch_of_rank(spec, rank, 2, workers)]
    assert len(samples) == SHARDS * SAMPLES
    texts = {sample.position: sample.text for sample in samples}
    assert [texts[p] for p in range(SHARDS * SAMPLES)] == expected


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(500, "http-500"), (403, "http-403"), (404, "http-404"), ("cut", "http-short-body")],
)
@pytest.mark.parametrize("cache_gb", [0.0, 1.0], ids=["ranges", "cache"])
def test_a_shard_that_fails_for_good_is_skipped_and_named(
    folder: Path,
    tmp_path: Path,
    expected: list[str | None],
    cache_gb: float,
    fault: int | str,
    reason: str,
) -> None:
    storage = Storage(cache_dir=str(tmp_path), cache_gb=cache_gb, retries=1, pause_s=0.001)
    with serving(folder) as server:
        load_index(_spec(server.url, storage).urls, storage)
        bad_shard = f"{server.url}/s-2.tar"
        server.faults = lambda path, before: fault if path == "/s-2.tar" else None
        items = _epoch(Source(_spec(server.url, storage)))
    bad = BadSamples()
    bad.add([item for item in items if isinstance(item, Skipped)])
    assert bad.counts == {(reason, bad_shard): SAMPLES}
    assert bad_shard in bad.summary() and reason in bad.summary()
    assert [t for t in _texts(items) if t] == [t for t in expected if t and " 2 " not in t]


def test_a_shard_that_comes_back_is_used_again(server: FaultyServer, tmp_path: Path) -> None:
    storage = Storage(cache_dir=str(tmp_path), retries=0, pause_s=0.001)
    source = Source(_spec(server.url, storage))
    server.faults = lambda path, before: 503
    assert isinstance(source[0], Skipped)
    server.faults = lambda path, before: None
    while isinstance(source[0], Skipped):  # for ten times as long as the failed attempt took
        time.sleep(0.01)


def test_a_failing_shard_is_asked_patiently_only_once(server: FaultyServer, tmp_path: Path) -> None:
    """Later samples of it fail at once, so that a dead shard does not stop the run for minutes."""
    storage = Storage(cache_dir=str(tmp_path), retries=3, pause_s=0.1, timeout_s=0.5)
    spec = FlowSpec(
        flow="f", kind="text", urls=(f"{server.url}/s-0.tar",), batch=1, storage=storage
    )
    source = Source(spec)
    server.requests.clear()
    server.faults = lambda path, before: 500
    items = [source[position] for position in range(5)]
    assert {item.reason for item in items if isinstance(item, Skipped)} == {"http-500"}
    assert len(items) == 5 and server.requests["/s-0.tar"] in (3, 4), (
        "as many as there was time for"
    )
    time.sleep(storage.timeout_s)
    server.requests.clear()
    assert all(isinstance(source[position], Skipped) for position in range(5))
    assert 1 <= server.requests["/s-0.tar"] < 5


def test_a_server_without_ranges_is_named_as_such(folder: Path, tmp_path: Path) -> None:
    storage = Storage(cache_dir=str(tmp_path), retries=0, pause_s=0.001)
    message = r"s-0\.tar: the server sends whole files only"
    with (
        serving(folder, lambda path, before: "whole") as server,
        pytest.raises(OSError, match=message),
    ):
        load_index(f"{server.url}/s-0.tar", storage)


def test_a_missing_remote_shard_is_named_at_once(server: FaultyServer, tmp_path: Path) -> None:
    storage = Storage(cache_dir=str(tmp_path), retries=0, pause_s=0.001)
    with pytest.raises(OSError, match=rf"{server.url}/gone\.tar: HTTP 404"):
        load_index(f"{server.url}/gone.tar", storage)
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_the_published_index_is_used(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    storage, url = Storage(cache_dir=str(tmp_path)), f"{server.url}/s-1.tar"
    assert load_index(url, storage)[0].samples == SAMPLES
    assert server.requests["/s-1.tar"] == 3, "for its size, and its first and last header"
    server.requests.clear()
    assert load_index(url, storage)[0].size == (folder / "s-1.tar").stat().st_size
    assert not server.requests, "the copy of the index is believed"
    assert list(verify(url, storage)) == [(url, "")]


def test_a_published_index_of_another_shard_is_not_believed(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.tar").write_bytes((folder / "s-0.tar").read_bytes())
    write_shard(own / "b.tar", [{"__key__": "b", "txt": "b"}])
    (own / "b.tar.index.safetensors").rename(own / "a.tar.index.safetensors")
    with serving(own) as server:
        headers = load_index(f"{server.url}/a.tar", Storage(cache_dir=str(tmp_path / "cache")))
    assert headers[0].samples == SAMPLES


def test_an_image_and_its_text_come_in_one_request(server: FaultyServer, tmp_path: Path) -> None:
    spec = _spec(server.url, Storage(cache_dir=str(tmp_path)))
    source = Source(spec)
    raw = source.reader.read(0)
    server.requests.clear()
    assert raw.read("bin") == bytes(20_000)
    assert raw.read("txt") is not None
    assert server.requests.total() == 1


def test_object_stores_are_read_through_fsspec(
    folder: Path, tmp_path: Path, expected: list[str | None]
) -> None:
    store = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):  # without the indices: they are built
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    storage = Storage(cache_dir=str(tmp_path))
    source = Source(_spec("memory://bucket", storage))
    assert _texts(_epoch(source)) == expected
    store.rm("/bucket/s-3.tar")
    gone = [item for item in _epoch(Source(source.spec)) if isinstance(item, Skipped)]
    assert {(bad.reason, bad.shard) for bad in gone} == {
        ("missing-shard", "memory://bucket/s-3.tar")
    }
    assert len(gone) == SAMPLES


def test_a_store_that_nothing_opens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nowhere://a\.tar.*nowhere"):
        expand("nowhere://a.tar")


def test_commands_run_only_when_allowed(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    url = f"pipe:touch {trap}; cat {folder}/s-0.tar"
    with pytest.raises(ValueError, match=r"data\.allow_pipe"):
        load_index(url)
    with pytest.raises(ValueError, match=r"data\.cache_gb"):
        load_index(url, Storage(allow_pipe=True))
    assert not trap.exists()


def test_what_a_command_prints_is_a_shard(
    folder: Path, tmp_path: Path, expected: list[str | None]
) -> None:
    storage = Storage(cache_dir=str(tmp_path), cache_gb=0.1, allow_pipe=True)
    spec = _spec(f"pipe:cat {folder}", storage)
    assert _texts(_epoch(Source(spec))) == expected
    with pytest.raises(OSError, match="ended with exit code 7"):
        load_index("pipe:exit 7", storage)


def test_indices_are_fetched_once_for_all_ranks(server: FaultyServer, tmp_path: Path) -> None:
    spec = _spec(server.url, Storage(cache_dir=str(tmp_path)))
    for rank in range(3):
        next(iter(build_loader([spec], rank=rank, world=3, num_workers=0)))
    indices = {path: n for path, n in server.requests.items() if path.endswith(".safetensors")}
    assert set(indices.values()) == {2}, "its size, and its content"


def test_commands_keep_to_the_cache_folder_and_retries_they_are_given(
    server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, options = f"{server.url}/s-{{0..1}}.tar", ["--cache-dir", str(tmp_path / "cache")]
    assert main_shards(["show", url, "--samples", "3", *options]) == 0
    assert "text 0 0" in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "index").glob("*.safetensors"))) == 2
    assert main_shards(["verify", url, *options]) == 0
    assert main_shards(["index", url, *options]) == 0
    assert f"2 shards, {2 * SAMPLES} samples" in capsys.readouterr().out
    with pytest.raises(OSError):
        main_shards(["show", f"{server.url}/gone.tar", *options, "--retries", "0"])
    with pytest.raises(ValueError, match="--retries must be at least 0, not -1"):
        main_shards(["show", url, "--retries", "-1"])


def test_a_command_in_a_url_needs_the_option(folder: Path, tmp_path: Path) -> None:
    url, options = f"pipe:cat {folder}/s-0.tar", ["--cache-dir", str(tmp_path), "--cache-gb", "0.1"]
    with pytest.raises(ValueError, match=r"data\.allow_pipe"):
        main_shards(["show", url, *options])
    assert main_shards(["show", url, *options, "--allow-pipe"]) == 0


def test_captions_are_put_into_remote_shards(server: FaultyServer, tmp_path: Path) -> None:
    """The options say where the captions are; these shards hold no images."""
    options = ["--for", "mmu", "--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "a")]
    with pytest.raises(ValueError, match="no-image"):
        main_shards(["from-captions", f"{server.url}/s-0.tar", *options])
    assert (tmp_path / "a" / "index").is_dir()


def test_verify_goes_on_behind_a_shard_that_cannot_be_read(folder: Path) -> None:
    storage = Storage(retries=0, timeout_s=5)
    urls = [f"{folder}/s-0.tar", "http://127.0.0.1:9/s-1.tar", f"{folder}/s-2.tar"]
    faults = [fault for _, fault in verify(urls, storage)]
    assert faults[0] == faults[2] == "" and "127.0.0.1" in faults[1]


def test_the_proxy_of_the_environment_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy is asked for whole URLs, which a server of this folder then has as paths."""
    (tmp_path / "http:").mkdir()
    (tmp_path / "http:" / "shards.example").symlink_to(folder)
    url = "http://shards.example/s-1.tar"
    with serving(tmp_path) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        (header,) = load_index(url, Storage(cache_dir=str(tmp_path / "cache")))
        assert header.samples == SAMPLES and proxy.requests[url] > 0
        monkeypatch.setenv("no_proxy", "shards.example")
        asked = proxy.requests.total()
        with pytest.raises(OSError, match=r"http-unreachable|shards\.example"):
            load_index(url, Storage(cache_dir=str(tmp_path / "b"), retries=0, timeout_s=5))
        assert proxy.requests.total() == asked
