"""Random damages of shards, members and indices: each sample is good, or skipped with a reason of its own."""

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
from showo_data.shards import index_path, write_shard
from tests.damages import PARTS, RANDOM, cases, damaged, digits, tar_field, words

FITS: dict[Encoded, Fit] = {
    CODES: Fit((16,), 64),
    CONDITION: Fit((4,), 64),
    FEATURES: Fit((3, 2)),
}
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


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_members(tmp_path: Path, part: int) -> None:
    """Samples of which one member is damaged, in shards of 50."""
    numbers, shard = list(cases(part)), tmp_path / "a.tar"
    for start in range(0, len(numbers), 50):
        chunk, samples = numbers[start : start + 50], []
        for case in chunk:
            rng = random.Random(f"member/{case}")
            members = dict(_members())
            name = rng.choice(list(members))
            members[name] = damaged(members[name], rng, [*RANDOM, digits, words])
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
            for position, case in enumerate(chunk):
                item = source[position]
                assert not isinstance(item, Skipped) or item.reason != UNEXPECTED, (case, item)
            _check(_spec(shard, kind, encoded), chunk[0])


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_shards(tmp_path: Path, part: int) -> None:
    """Shards of three samples that are damaged anywhere, or in the fields of their headers."""
    chosen = {name: _members()[name] for name in ("png", "txt", "json", CODES)}
    write_shard(tmp_path / "good.tar", [{"__key__": f"k{i}", **chosen} for i in range(3)])
    good = (tmp_path / "good.tar").read_bytes()
    for case in cases(part):
        rng = random.Random(f"shard/{case}")
        shard = tmp_path / f"{case}.tar"
        shard.write_bytes(damaged(good, rng, [*RANDOM, tar_field, tar_field, tar_field]))
        _check(_spec(shard, *rng.choice(FLOWS)), case)
        for path in tmp_path.glob(f"{case}.tar*"):
            path.unlink()


def _content(item: Sample | Skipped) -> tuple[Any, ...]:
    assert isinstance(item, Sample)
    return item.key, item.text, item.conversation, str(item.codes_N), str(item.features_SC)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_indices(tmp_path: Path, part: int) -> None:
    """Shards with a damaged index: each sample is as without the damage, or the index is refused."""
    shard, kept = tmp_path / "a.tar", dict(_members())
    for other in ("png", "webp"):
        del kept[other]
    write_shard(shard, [{"__key__": f"k{i}", **kept, "txt": f"text {i}"} for i in range(3)])
    index, modified = index_path(str(shard)), shard.stat().st_mtime_ns
    good = index.read_bytes()
    wanted = {flow: [_content(item) for item in _items(_spec(shard, *flow))] for flow in FLOWS}
    for case in cases(part):
        rng = random.Random(f"index/{case}")
        index.write_bytes(damaged(good, rng, [*RANDOM, digits, words]))
        os.utime(index, ns=(modified, modified))
        flow = rng.choice(FLOWS)
        for item, content in zip(_items(_spec(shard, *flow)), wanted[flow], strict=False):
            if isinstance(item, Skipped):
                assert item.reason == "broken-index", (case, item)
            else:
                assert _content(item) == content, case
