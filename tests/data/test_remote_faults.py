"""Servers, stores and commands that do not answer, or wrongly: in time, counted, and never as data."""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from showo_data import BadSamples, FlowSpec, Sample, Skipped, Source
from showo_data.shards import Storage, load_index, write_shard
from showo_data.shards.outages import OUTAGES
from showo_data.shards.storage import UnreadableShardError
from showo_data.shards.web import web_state
from tests.data.server import Answer, Fault, FaultyServer, serving

pytestmark = pytest.mark.usefixtures("time_limit")

SAMPLES = 6
TIMEOUT_S = 0.4
# A request may end a little after its time on a busy machine.
SLACK_S = 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of six samples each, all of one size, whose texts name them. Not to be changed."""
    folder = tmp_path_factory.mktemp("faults")
    for shard in range(4):
        # Members that are further apart than what one request reads.
        samples = [
            {"__key__": f"{i}", "txt": f"text {shard} {i}", "bin": bytes(40_000)}
            for i in range(SAMPLES)
        ]
        write_shard(folder / f"{shard}.tar", samples)
    return folder


@pytest.fixture(autouse=True)
def no_outages() -> None:
    """Ports, and so the names of servers, may be used again."""
    OUTAGES.clear()


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with serving(folder) as running:
        yield running


def _source(urls: str, cache: Path, **options: Any) -> Source:
    options = {"retries": 0, "pause_s": 0.001, "timeout_s": TIMEOUT_S, **options}
    storage = Storage(cache_dir=str(cache), **options)
    load_index(urls, replace(storage, timeout_s=30.0))
    spec = FlowSpec(
        flow="f", kind="text", urls=(urls,), batch=1, streams=1, window=1, storage=storage
    )
    return Source(spec)


def _fails(server: FaultyServer, fault: Fault, *names: str) -> None:
    paths = {f"/{name}.tar" for name in names}
    server.faults = lambda path, before: fault if path in paths else None


def _forge(
    *,
    line: str | None = None,
    body: bytes | None = None,
    then: dict[str, Any] | None = None,
    **headers: str | None,
) -> Callable[[Answer], None]:
    """Return a fault: another status line, body, headers (None: without it) and other attributes."""

    def change(answer: Answer) -> None:
        answer.line = line or answer.line
        answer.body = answer.body if body is None else body
        for name, value in headers.items():
            answer.headers.pop(name := name.replace("_", "-"), None)
            answer.headers |= {} if value is None else {name: value}
        vars(answer).update(then or {})

    return change


ENDLESS: dict[str, Any] = {"body": bytes(1 << 20), "then": {"repeats": 1 << 16}}
CHUNKED: dict[str, Any] = {"Content_Length": None, "Transfer_Encoding": "chunked"}
LONG = {f"X-{i}": "y" * 60_000 for i in range(99)}
CHUNK = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
SLOW: dict[str, tuple[Fault, str]] = {
    "silence": (60.0, "shard-timeout"),
    "trickle": (_forge(then={"body_s": 0.05}), "shard-timeout"),
    "trickle of headers": (_forge(then={"headers_s": 0.05}), "shard-timeout"),
    "trickle of chunks": (
        _forge(
            body=b"1\r\n0\r\n",
            **CHUNKED,
            then={"body_s": 0.05, "repeats": 999},
        ),
        "shard-timeout",
    ),
    "Retry-After": (_forge(line="HTTP/1.1 503 Busy", Retry_After="3600"), "http-503"),
    "Retry-After that is no number": (
        _forge(line="HTTP/1.1 503 Busy", Retry_After="9" * 5000),
        "http-503",
    ),
    "redirects": (_forge(line="HTTP/1.1 302 Found", Location="/0.tar"), "http-unreachable"),
    "headers without end": (
        _forge(
            X="y" * 60_000, then={"headers_s": None}, **{f"X-{i}": "y" * 60_000 for i in range(99)}
        ),
        "http-unreachable",
    ),
    "body without end": (_forge(Content_Length=None, **ENDLESS), "http-wrong-range"),
    "length without end": (_forge(Content_Length=str(10**15), **ENDLESS), "http-wrong-range"),
    "chunks without end": (
        _forge(body=CHUNK, **CHUNKED, then={"repeats": 1 << 16}),
        "http-wrong-range",
    ),
    "a chunk of all that follows": (
        _forge(
            body=b"-1\r\n" + CHUNK,
            **CHUNKED,
            then={"repeats": 1 << 16},
        ),
        "http-unreachable",
    ),
    "error page without end": (
        _forge(line="HTTP/1.1 500 Oh", Content_Length=None, **ENDLESS),
        "http-500",
    ),
}


@pytest.mark.parametrize("cache_gb", [0.0, 1.0], ids=["ranges", "cache"])
@pytest.mark.parametrize("kind", SLOW)
def test_a_sample_has_one_deadline_and_a_dead_shard_is_skipped_at_once(
    server: FaultyServer, tmp_path: Path, kind: str, cache_gb: float
) -> None:
    fault, reason = SLOW[kind]
    source = _source(f"{server.url}/0.tar", tmp_path, retries=5, cache_gb=cache_gb)
    _fails(server, fault, "0")
    start = time.monotonic()
    first = source[0]
    took = time.monotonic() - start
    assert took < TIMEOUT_S + SLACK_S
    items = [first, *(source[position] for position in range(1, SAMPLES))]
    assert time.monotonic() - start < 1.5 * TIMEOUT_S + 2 * SLACK_S
    # On a busy machine, the time may end before the reason is known.
    assert {getattr(item, "reason", "read") for item in items} <= {reason, "shard-timeout"}
    _fails(server, None)
    right = [f"text 0 {i}" for i in range(SAMPLES)]
    while [getattr(source[p], "text", None) for p in range(SAMPLES)] != right:
        time.sleep(TIMEOUT_S)  # it is asked again, until the test's time is over


def _gzip(answer: Answer) -> None:
    answer.headers["Content-Encoding"] = "gzip"


def _moved(by: int, *, admitted: bool, answer: Answer) -> None:
    """Answer with a range that begins elsewhere, and say so or not."""
    start, size, total = max(0, answer.start + by), len(answer.body), len(answer.whole)
    answer.body = answer.whole[start : start + size]
    if admitted:
        place = f"bytes {start}-{start + len(answer.body) - 1}/{total}"
        answer.headers |= {"Content-Range": place, "Content-Length": str(len(answer.body))}


WRONG: dict[str, tuple[Fault, str]] = {
    "from the beginning": (lambda a: _moved(-(10**9), admitted=True, answer=a), "http-wrong-range"),
    "from elsewhere": (
        lambda a: _moved(41_984, admitted=True, answer=a),
        "http-wrong-range",
    ),
    "from elsewhere, not admitted": (
        lambda a: _moved(41_984, admitted=False, answer=a),
        "http-short-body",
    ),
    "a range that is backwards": (_forge(Content_Range="bytes 9-3/100"), "http-wrong-range"),
    "no range": (_forge(Content_Range=None), "http-no-ranges"),
    "no numbers": (_forge(Content_Range="bytes a-b/c"), "http-wrong-range"),
    "another size": (_forge(Content_Range="bytes 0-9/10"), "http-wrong-range"),
    "unknown size": (_forge(Content_Range="bytes 0-9/*"), "http-wrong-range"),
    "another length": (_forge(Content_Length="7"), "http-wrong-range"),
    "another ETag": (_forge(ETag='"other"'), "changed-shard"),
    "compressed": (_gzip, "http-compressed"),
    "past the end": (_forge(line="HTTP/1.1 416 No", Content_Range="bytes */1"), "http-wrong-range"),
    "nothing": (_forge(line="HTTP/1.1 204 No"), "http-204"),
    "not HTTP": (_forge(line="SSH-2.0-OpenSSH_9.6"), "http-unreachable"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_never_data(server: FaultyServer, tmp_path: Path, kind: str) -> None:
    fault, reason = WRONG[kind]
    server.etags = True
    source = _source(f"{server.url}/{{0..3}}.tar", tmp_path)
    texts = {f"text {shard} {i}" for shard in range(4) for i in range(SAMPLES)}
    _fails(server, fault, "2")
    items = [source[position] for position in range(4 * SAMPLES)]
    assert {item.text for item in items if isinstance(item, Sample)} >= {
        t for t in texts if " 2 " not in t
    }
    for item in items:
        if isinstance(item, Sample):  # the right one
            assert item.text == f"text {item.shard[-5]} {item.key}"
    reasons = {item.reason for item in items if isinstance(item, Skipped)}
    assert reasons and reasons <= {reason, "changed-shard"}


@pytest.mark.parametrize("kind", sorted(set(WRONG) - {"no range", "nothing"}))
def test_one_wrong_answer_is_asked_for_again(
    server: FaultyServer, tmp_path: Path, kind: str
) -> None:
    source = _source(f"{server.url}/2.tar", tmp_path, retries=2, timeout_s=5.0)
    server.requests.clear()
    server.faults = lambda path, before: WRONG[kind][0] if before == 3 else None
    items = [source[position] for position in range(SAMPLES)]
    lost = [item.reason for item in items if isinstance(item, Skipped)]
    assert lost in ([], ["changed-shard"])
    assert isinstance(_source(f"{server.url}/2.tar", tmp_path)[0], Sample)


def test_the_range_of_a_compressed_file_is_not_asked_for(
    server: FaultyServer, tmp_path: Path
) -> None:
    """A server that compresses all it sends is refused at the start, in one line."""
    server.faults = lambda path, before: _gzip
    with pytest.raises(OSError, match=r"0\.tar: a compressed answer"):
        load_index(f"{server.url}/0.tar", Storage(cache_dir=str(tmp_path), retries=0))


def test_two_silent_shards_are_a_dead_server(server: FaultyServer, tmp_path: Path) -> None:
    source = _source(f"{server.url}/{{0..3}}.tar", tmp_path)
    assert isinstance(source[0], Sample)
    server.requests.clear()
    server.faults = lambda path, before: 60.0
    start = time.monotonic()
    items = [source[position] for position in range(4 * SAMPLES)]
    assert time.monotonic() - start < 1.5 * TIMEOUT_S + SLACK_S
    bad = BadSamples()
    skipped = [item for item in items if isinstance(item, Skipped)]
    bad.add(skipped, good=len(items) - len(skipped))
    # An open shard may have read ahead; every other sample is one that is lost.
    assert bad.by_reason().keys() == {"shard-timeout"} and len(skipped) >= 3 * SAMPLES
    assert bad.tried == 4 * SAMPLES
    assert server.requests.total() <= 2


def test_one_silent_shard_is_not_a_dead_server(server: FaultyServer, tmp_path: Path) -> None:
    source = _source(f"{server.url}/{{0..3}}.tar", tmp_path)
    _fails(server, 60.0, "2")
    items = [source[position] for position in range(4 * SAMPLES)]
    lost = [item for item in items if isinstance(item, Skipped)]
    assert {item.shard[-5:] for item in lost} == {"2.tar"} and len(lost) == SAMPLES


def test_a_server_that_refuses_connections_is_unreachable() -> None:
    """Not slow: the reason tells whether to raise ``data.timeout_s`` or to look for the server."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/0.tar"
    with pytest.raises(UnreadableShardError, match="refused") as refusal:
        web_state(url, Storage(retries=1, pause_s=0.001, timeout_s=30.0))
    assert refusal.value.reason == "http-unreachable"


def test_what_is_skipped_is_not_replaced(server: FaultyServer, tmp_path: Path) -> None:
    """The samples that remain are at the positions that they have without a fault."""
    source = _source(f"{server.url}/{{0..3}}.tar", tmp_path)
    right = [source[position] for position in range(4 * SAMPLES)]
    source = _source(f"{server.url}/{{0..3}}.tar", tmp_path)
    server.faults = lambda path, before: 503 if path == "/1.tar" and before % 3 else None
    for position, item in enumerate(source[p] for p in range(4 * SAMPLES)):
        expected = right[position]
        assert isinstance(expected, Sample) and item.position == position
        assert item.shard == expected.shard
        assert isinstance(item, Skipped) or item == expected


class SlowStore(MemoryFileSystem):
    """A store whose client waits without end."""

    protocol = "slow"
    store: dict[str, Any] = {}  # noqa: RUF012  # as in its base
    pause_s = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("slow://", "memory://")))

    def cat_file(self, *args: Any, **options: Any) -> Any:
        time.sleep(self.pause_s)
        return super().cat_file(*args, **options)


def test_a_store_that_does_not_answer_is_left_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    fsspec.filesystem("slow").pipe_file("/a.tar", (folder / "0.tar").read_bytes())
    source = _source("slow://a.tar", tmp_path)
    monkeypatch.setattr(SlowStore, "pause_s", 3.0)
    start = time.monotonic()
    items = [source[position] for position in range(SAMPLES)]
    assert time.monotonic() - start < 1.5 * TIMEOUT_S + SLACK_S
    assert {getattr(item, "reason", "") for item in items} == {"shard-timeout"}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("cat {0}; sleep 60", "no output"),
        ("sleep 60", "no output"),
        ("cat {0}; exec >&-; sleep 60", "does not end"),
        ("yes", "prints too much"),
    ],
)
def test_a_command_without_end_is_killed(
    folder: Path, tmp_path: Path, command: str, reason: str
) -> None:
    storage = Storage(cache_dir=str(tmp_path), cache_gb=0.01, allow_pipe=True, timeout_s=TIMEOUT_S)
    start = time.monotonic()
    with pytest.raises(OSError, match=reason):
        load_index("pipe:" + command.format(folder / "0.tar"), storage)
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S
