"""Random damages of shards and of their members: each sample is good, or skipped with a reason of its own.

Case n is the same in every run. ``SHOWO_FUZZ=100000`` runs that many cases, ``SHOWO_FUZZ_FIRST`` is the
first, to continue behind an earlier run.
"""

import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from showo_data import FlowSpec, Sample, Skipped, Source, vq_transform
from showo_data.members import CODES, CONDITION, FEATURES, Encoded, Fit
from showo_data.samples import UNEXPECTED, Kind
from showo_data.shards import write_shard

CASES = int(os.environ.get("SHOWO_FUZZ", "1000"))
FIRST = int(os.environ.get("SHOWO_FUZZ_FIRST", "0"))
GROUPS = max(10, CASES // 100)  # tests among which the cases are divided, each with a time limit
FITS: dict[Encoded, Fit] = {
    CODES: Fit((16,), 64),
    CONDITION: Fit((4,), 64),
    FEATURES: Fit((3, 2)),
}
# Numbers that readers of untrusted data have believed.
NUMBERS = [0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63]
FLOWS: list[tuple[Kind, tuple[Encoded, ...]]] = [
    ("caption", (CODES,)),
    ("conversation", (FEATURES,)),
    ("image", (CODES, CONDITION)),
    ("text", ()),
]

pytestmark = pytest.mark.usefixtures("time_limit")


def _bytes(save: Callable[[io.BytesIO], Any]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


@cache
def _members() -> dict[str, bytes]:
    """All kinds of members of one good sample."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    image = Image.linear_gradient("L").resize((12, 9)).convert("RGB")
    chat = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "é \U0001f642"}]
    content = {"captions": ["a", "b"], "caption": "c", "conversations": chat}
    return {
        "jpg": _bytes(lambda s: image.save(s, "JPEG", exif=exif)),
        "png": _bytes(lambda s: image.save(s, "PNG", exif=exif)),
        "webp": _bytes(lambda s: image.save(s, "WEBP", exif=exif)),
        "txt": "a red circle – Würfel".encode(),
        "json": json.dumps(content).encode(),
        CODES: _bytes(lambda s: np.save(s, np.arange(16, dtype=np.uint16))),
        CONDITION: _bytes(lambda s: np.save(s, np.arange(4))),
        FEATURES: _bytes(lambda s: np.save(s, np.ones((3, 2), np.float16))),
    }


def _spec(shard: Path, kind: Kind, encoded: tuple[Encoded, ...]) -> FlowSpec:
    options: dict[str, Any] = {"transform": vq_transform(8), "streams": 1, "window": 1, "batch": 1}
    return FlowSpec(flow="f", kind=kind, urls=(str(shard),), encoded=encoded, fits=FITS, **options)


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 7, 512])]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.choice([bytes(512), rng.randbytes(rng.randrange(1, 600)), b"\xff"])


def _erase(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([4, 100, 512]))
    data[start:end] = rng.choice([b"\0", b"\xff"]) * (end - start)


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.choice([4, 512, 2048])]


def _number(data: bytearray, rng: random.Random) -> None:
    """Put a number that is too large somewhere, in binary or in digits."""
    number, start = rng.choice(NUMBERS), rng.randrange(len(data))
    size, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
    binary = (number % 2 ** (8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
    data[start : start + size] = rng.choice([binary, str(number).encode()])


def _digits(data: bytearray, rng: random.Random) -> None:
    """Replace a number in digits, in a header or JSON."""
    found = list(re.finditer(rb"\d+", data))
    if found:
        match = rng.choice(found)
        value = rng.choice([b"-1", b"9" * 5000, b"1e999", str(rng.choice(NUMBERS)).encode()])
        data[match.start() : match.end()] = value


def _words(data: bytearray, rng: random.Random) -> None:
    """Replace a text in quotes by something else that JSON or NumPy's header may hold."""
    found = list(re.finditer(rb"(['\"])[^'\"]*\1", data))
    values = [b"null", b'""', b'" "', b'"\\ud800"', b"[]", b"{}", b"7", b"true", b"'|O'", b"'<f8'"]
    if found:
        match = rng.choice(found)
        data[match.start() : match.end()] = rng.choice([*values, b"[" * 10_000])


def _tar_field(data: bytearray, rng: random.Random) -> None:
    """Replace a field of a tar header, and make its checksum right again."""
    fields = [(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)]
    start = rng.randrange(max(1, len(data) // 512)) * 512
    offset, size = rng.choice(fields)
    values = [
        b"\x80" + rng.choice(NUMBERS).to_bytes(size, "big")[1:] if size > 8 else b"\xff" * size,
        b"\xff" * size,
        b"7" * size,
        b"-0000001",
        b"0" * size,
        rng.choice([b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"5", b"\0", b"V", b"9"]),
        b"../" * 40,
        rng.randbytes(size),
    ]
    value = rng.choice(values)[:size]
    data[start + offset : start + offset + len(value)] = value
    header = bytes(data[start : start + 512])
    if len(header) == 512:
        checksum = sum(header[:148]) + sum(header[156:]) + 8 * 32
        data[start + 148 : start + 156] = b"%06o\0 " % checksum


RANDOM = [_flip, _flip, _cut, _remove, _insert, _erase, _repeat, _number]


def _damaged(data: bytes, rng: random.Random, ways: list[Any]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if changed:
            rng.choice(ways)(changed, rng)
    return bytes(changed)


def _items(spec: FlowSpec) -> Iterator[Sample | Skipped]:
    """All samples; none if the shard is refused, which is one line that names it."""
    try:
        source = Source(spec)
    except (OSError, ValueError) as error:
        assert str(error) and "\n" not in str(error)
        assert any(word in str(error) for word in (spec.urls[0], "flow 'f'"))
        return
    for position in range(min(len(source), 40)):
        yield source[position]


def _check(spec: FlowSpec, case: int) -> None:
    for item in _items(spec):
        if isinstance(item, Skipped):
            assert item.reason != UNEXPECTED, (case, item)
            assert re.fullmatch(r"[a-z0-9-]+", item.reason) and "\n" not in item.detail, (
                case,
                item,
            )
            continue
        for text in [item.text, *(value for _, value in item.conversation or [])]:
            assert text is None or text.encode() is not None
        assert spec.kind not in ("caption", "text") or (item.text and item.text.strip()), case
        assert item.codes_N is None or (item.codes_N.shape == (16,) and item.codes_N.max() < 64)
        assert item.features_SC is None or item.features_SC.shape == (3, 2)


def _group(group: int) -> range:
    return range(FIRST + group, FIRST + CASES, GROUPS)


@pytest.mark.parametrize("group", range(GROUPS))
def test_damaged_members(tmp_path: Path, group: int) -> None:
    """Samples of which one member is damaged, in shards of 50."""
    cases, shard = list(_group(group)), tmp_path / "a.tar"
    for start in range(0, len(cases), 50):
        part, samples = cases[start : start + 50], []
        for case in part:
            rng = random.Random(f"member/{case}")
            members = dict(_members())
            name = rng.choice(list(members))
            members[name] = _damaged(members[name], rng, [*RANDOM, _digits, _words])
            # Of several images, the first is read.
            for other in {"jpg", "png", "webp"} - {name if name in ("png", "webp") else "jpg"}:
                del members[other]
            for other in (CODES, CONDITION, FEATURES):
                if other != name and rng.random() < 0.5:
                    del members[other]
            samples.append({"__key__": f"case{case}", **members})
        write_shard(shard, samples)
        for kind, encoded in FLOWS:
            source = Source(_spec(shard, kind, encoded))
            for position, case in enumerate(part):
                item = source[position]
                assert not isinstance(item, Skipped) or item.reason != UNEXPECTED, (case, item)
            _check(_spec(shard, kind, encoded), part[0])


@pytest.mark.parametrize("group", range(GROUPS))
def test_damaged_shards(tmp_path: Path, group: int) -> None:
    """Shards of three samples that are damaged anywhere, or in the fields of their headers."""
    chosen = {name: _members()[name] for name in ("png", "txt", "json", CODES)}
    write_shard(tmp_path / "good.tar", [{"__key__": f"k{i}", **chosen} for i in range(3)])
    good = (tmp_path / "good.tar").read_bytes()
    for case in _group(group):
        rng = random.Random(f"shard/{case}")
        shard = tmp_path / f"{case}.tar"
        shard.write_bytes(_damaged(good, rng, [*RANDOM, _tar_field, _tar_field, _tar_field]))
        _check(_spec(shard, *rng.choice(FLOWS)), case)
        for path in tmp_path.glob(f"{case}.tar*"):
            path.unlink()
