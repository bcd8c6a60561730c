"""Random damages of the answers of a web server: a text is the right one, or skipped in time."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from showo_data import FlowSpec, Sample, Source
from showo_data.samples import UNEXPECTED
from showo_data.shards import Storage, load_index, write_shard
from showo_data.shards.outages import OUTAGES
from tests.damages import PARTS, cases, limited
from tests.data.server import Answer, serving

TIMEOUT_S = 0.05
SLACK_S = 5.0  # of a machine that does something else
SAMPLES = 8
NUMBERS = ["0", "1", "-1", "7", "512", "40960", str(2**31), str(2**63), "9" * 5000, "x", "", "1e3"]

pytestmark = pytest.mark.usefixtures("case_limits")


def _status(answer: Answer, rng: random.Random) -> None:
    status = rng.choice([100, 199, 200, 204, 206, 301, 304, 404, 416, 429, 500, 503, 599, 999])
    answer.line = rng.choice(
        [f"HTTP/1.1 {status} x", f"HTTP/1.0 {status}", "HTTP/9 206", "", "206"]
    )


def _content_range(answer: Answer, rng: random.Random) -> None:
    place = [str(answer.start), str(answer.start + len(answer.body) - 1), str(len(answer.whole))]
    place[rng.randrange(3)] = rng.choice([*NUMBERS, "*"])
    answer.headers["Content-Range"] = rng.choice(["bytes ", "bytes=", ""]) + "{}-{}/{}".format(
        *place
    )


def _moved(answer: Answer, rng: random.Random) -> None:
    """Send another range of the same length, and admit it or not."""
    answer.start = rng.randrange(len(answer.whole))
    answer.body = answer.whole[answer.start : answer.start + len(answer.body)]
    if rng.random() < 0.5:
        end = answer.start + len(answer.body) - 1
        answer.headers["Content-Range"] = f"bytes {answer.start}-{end}/{len(answer.whole)}"
        answer.headers["Content-Length"] = str(len(answer.body))


def _fewer(answer: Answer, rng: random.Random) -> None:
    """Send the beginning of the range, as a server may."""
    answer.body = answer.body[: 1 + rng.randrange(max(1, len(answer.body)))]
    end = answer.start + len(answer.body) - 1
    answer.headers["Content-Range"] = f"bytes {answer.start}-{end}/{len(answer.whole)}"
    answer.headers["Content-Length"] = str(len(answer.body))


def _header(answer: Answer, rng: random.Random) -> None:
    name = rng.choice(
        ["Content-Length", "Retry-After", "ETag", "Content-Encoding", "Transfer-Encoding"]
    )
    words = ["gzip", "br", "identity", "chunked", '"etag"', "W/x", "Fri, 31 Dec 9999 23:59:59 GMT"]
    answer.headers[name] = rng.choice([*NUMBERS, *words])


def _without(answer: Answer, rng: random.Random) -> None:
    answer.headers.pop(rng.choice(["Content-Length", "Content-Range", "ETag"]), None)


def _cut(answer: Answer, rng: random.Random) -> None:
    answer.body = answer.body[: rng.randrange(len(answer.body) + 1)]


def _longer(answer: Answer, rng: random.Random) -> None:
    answer.body += rng.randbytes(rng.choice([1, 2, 512, 1 << 16, 1 << 20]))


def _chunks(answer: Answer, rng: random.Random) -> None:
    size, data = (
        rng.choice([b"%x" % len(answer.body), b"-1", b"0", b"fffffffff", b"zz"]),
        answer.body,
    )
    answer.body = (
        size + b"\r\n" + data + rng.choice([b"\r\n0\r\n\r\n", b"\r\n", b"", b"\r\n5\r\nxyz"])
    )
    answer.headers.pop("Content-Length", None)
    answer.headers["Transfer-Encoding"] = "chunked"


def _slow(answer: Answer, rng: random.Random) -> None:
    if rng.random() < 0.5:
        answer.headers_s = 0.01
    else:
        answer.body_s = 0.01


def _flip(answer: Answer, rng: random.Random) -> None:
    """Change a byte of the head; nothing but the checksum of the index knows the content of a member."""
    name = rng.choice(list(answer.headers))
    text = list(answer.headers[name] or " ")
    text[rng.randrange(len(text))] = chr(rng.randrange(256))
    answer.headers[name] = "".join(text)


def _redirect(answer: Answer, rng: random.Random) -> None:
    answer.line = f"HTTP/1.1 {rng.choice([301, 302, 303, 307, 308])} x"
    places = [
        "",
        "/gone",
        "http://",
        "http://[",
        "ftp://h/x",
        "//",
        "/../" * 300,
        "http://127.0.0.1:1/",
    ]
    answer.headers["Location"] = rng.choice(places)


DAMAGES: list[Callable[[Answer, random.Random], None]] = [
    _status,
    _content_range,
    _moved,
    _fewer,
    _header,
    _without,
    _cut,
    _longer,
    _chunks,
    _slow,
    _flip,
    _redirect,
]


def _damage(case: int) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        rng = random.Random(f"http/{case}")
        for damage in rng.choices(DAMAGES, k=rng.choice([1, 1, 1, 2, 3])):
            damage(answer, rng)

    return change


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_answers(tmp_path: Path, part: int) -> None:
    samples = [
        {"__key__": f"k{i}", "bin": bytes(30_000), "txt": f"text {i}"} for i in range(SAMPLES)
    ]
    write_shard(tmp_path / "a.tar", samples)
    with serving(tmp_path) as server:
        storage = Storage(
            cache_dir=str(tmp_path / "cache"), retries=1, pause_s=0.001, timeout_s=TIMEOUT_S
        )
        server.etags = True
        urls = (f"{server.url}/a.tar",)
        spec = FlowSpec(
            flow="f", kind="text", urls=urls, batch=1, streams=1, window=1, storage=storage
        )
        for case in limited(cases(part)):
            server.faults = lambda path, before: None
            OUTAGES.clear()
            load_index(
                urls, replace(storage, timeout_s=SLACK_S)
            )  # a damage may have cost the index
            source = Source(spec)
            # One damaged answer, or all of them.
            start, lasting = server.requests["/a.tar"], case % 2
            damage = _damage(case)
            server.faults = lambda path, before, start=start, lasting=lasting, damage=damage: (  # type: ignore[misc]
                damage if lasting or before == start else None
            )
            for position in range(SAMPLES):
                begin = time.monotonic()
                item = source[position]
                assert time.monotonic() - begin < TIMEOUT_S + SLACK_S, case
                if isinstance(item, Sample):
                    assert item.text == f"text {position}", case
                else:
                    assert item.reason != UNEXPECTED, (case, item)
