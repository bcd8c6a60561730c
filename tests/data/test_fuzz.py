"""Random damages of shards, members and indices: each sample is good, or skipped with a reason of its own."""

import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from showo_data import FlowSpec, Sample, Skipped, Source, vq_transform
from showo_data.members import CODES, CONDITION, FEATURES, IMAGES, Encoded, Fit
from showo_data.samples import UNEXPECTED, Kind
from showo_data.shards import OpenShards, index_path, load_table, write_shard
from showo_data.shards.tables import BLOCK, is_header
from tests.damages import PARTS, RANDOM, cases, damaged, digits, limited, tar_field, words

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

# Of an image of less than 89 million pixels, in four bytes each, and a copy of it.
IMAGE_MB = 1024

pytestmark = pytest.mark.usefixtures("case_limits")


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


# Attribute of a sample → the member that it comes from, if another one than the image.
SOURCES: dict[str, Encoded | str] = {
    "codes_N": CODES,
    "condition_codes_G": CONDITION,
    "features_SC": FEATURES,
    "text": "txt",
    "conversation": "json",
}


@cache
def _good(members: tuple[str, ...], kind: Kind, encoded: tuple[Encoded, ...]) -> Sample:
    """The undamaged sample of some of the members."""
    with TemporaryDirectory() as folder:
        shard = Path(folder, "a.tar")
        write_shard(shard, [{"__key__": "k", **{name: _members()[name] for name in members}}])
        item = Source(_spec(shard, kind, encoded))[0]
        assert isinstance(item, Sample), item
        return item


def _unlike(item: Sample, good: Sample) -> set[str]:
    """The members from which two samples have different content."""
    values = {member: (getattr(item, a), getattr(good, a)) for a, member in SOURCES.items()}
    values["image"] = (item.image_3HW, good.image_3HW)
    return {member for member, (one, other) in values.items() if not _equal(one, other)}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and not isinstance(one, Tensor) and one == other


def _needed(members: tuple[str, ...], kind: Kind, encoded: tuple[Encoded, ...]) -> set[str]:
    """The members that a sample of a flow is made of."""
    texts: dict[Kind, set[str]] = {"caption": {"txt"}, "text": {"txt"}, "conversation": {"json"}}
    image = set() if kind == "text" or {*encoded} <= {*members} else {"image"}
    return image | texts.get(kind, set()) | {*encoded}


def _damaged_sample(case: int) -> tuple[str, tuple[str, ...], dict[str, bytes]]:
    """The name of the damaged member, those of all, and the sample."""
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
    return name, tuple(members), members


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_members(tmp_path: Path, part: int) -> None:
    """Samples of which one member is damaged, in shards of 50: a flow differs only in what it reads of it."""
    numbers, shard = cases(part), tmp_path / "a.tar"
    for chunk in limited((numbers[i : i + 50] for i in range(0, len(numbers), 50)), IMAGE_MB):
        made = [_damaged_sample(case) for case in chunk]
        write_shard(
            shard,
            [{"__key__": f"case{c}", **m[2]} for c, m in zip(chunk, made, strict=True)],
        )
        for flow in FLOWS:
            source = Source(_spec(shard, *flow))
            for position, (case, (name, members, _)) in enumerate(zip(chunk, made, strict=True)):
                item, damage = source[position], "image" if name in IMAGES else name
                if isinstance(item, Skipped):
                    assert item.reason != UNEXPECTED, (case, item)
                    assert damage in _needed(members, *flow), (case, item)
                else:
                    assert _unlike(item, _good(members, *flow)) <= {damage}, (case, item)
            _check(_spec(shard, *flow), chunk[0])


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_members_of_several_images(tmp_path: Path, part: int) -> None:
    """A sample of which one image or the JSON is damaged is skipped, or differs in that alone."""
    shard, image = tmp_path / "a.tar", _members()["png"]
    good = {"0.png": image, "1.jpg": _members()["jpg"], "2.png": image}
    texts = [None, "text 0", None, "text 1", None, "text 2"]
    members = {"json": json.dumps({"texts": texts}).encode(), **good}
    numbers = cases(part)
    for chunk in limited((numbers[i : i + 50] for i in range(0, len(numbers), 50)), IMAGE_MB):
        names: list[str] = []
        samples = []
        for case in chunk:
            rng = random.Random(f"several/{case}")
            names.append(rng.choice(list(members)))
            data = damaged(members[names[-1]], rng, [*RANDOM, digits, words])
            samples.append({"__key__": f"case{case}", **members, names[-1]: data})
        write_shard(shard, samples)
        source = Source(replace(_spec(shard, "conversation", (FEATURES,)), max_images=3))
        for position, (case, name) in enumerate(zip(chunk, names, strict=True)):
            item = source[position]
            if isinstance(item, Skipped):
                assert item.reason != UNEXPECTED, (case, item)
                continue
            assert item.images_M3HW is not None and len(item.images_M3HW) == 3, case
            assert item.document is not None and item.document.count(None) == 3, case
            assert name == "json" or item.document == texts, case
            same = torch.equal(item.images_M3HW[0], item.images_M3HW[2])
            assert same or name in ("0.png", "2.png"), case


def _headers(data: bytes) -> Counter[bytes]:
    """The intact tar headers at the places where one may be."""
    blocks = (data[i : i + BLOCK] for i in range(0, len(data), BLOCK))
    return Counter(block for block in blocks if block.strip(b"\0") and is_header(block))


def _compare(shard: Path, good: Path, case: int) -> None:
    """Check that no member has other bytes than its own, and that no untouched sample is lost.

    The bytes of a member have no checksum: they may differ where they are damaged, and only there. A header
    that was changed and is intact nevertheless is the header of another file, as nobody can tell.
    """
    data, whole, files = shard.read_bytes(), good.read_bytes(), OpenShards()
    wanted, table = load_table(str(good)), load_table(str(shard))
    found = {table.key(i): table.members(i) for i in range(len(table))}
    real, now = _headers(whole), _headers(data)
    same = now <= real  # no header was made or repeated
    for number in range(len(wanted)):
        members = wanted.members(number)
        own = {whole[m.offset - BLOCK : m.offset]: m for m in members}
        for member in found.get(wanted.key(number), []):
            header = data[member.offset - BLOCK : member.offset]
            original = own.get(header)
            assert original or header not in real, (case, "another member's bytes")
            if original is not None:
                start, size = member.offset, original.size
                assert member.size == size and member.extension == original.extension, case
                if start + size <= len(data):
                    assert files.read(str(shard), member) == data[start : start + size], case
        begin, end = (
            members[0].offset - BLOCK,
            members[-1].offset + -(-members[-1].size // BLOCK) * BLOCK,
        )
        if same and data[begin:end] == whole[begin:end]:
            assert found.get(wanted.key(number)) == members, (case, "an untouched sample is lost")
    files.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_shards(tmp_path: Path, part: int) -> None:
    """Shards of three samples that are damaged anywhere, or in the fields of their headers."""
    chosen = {name: _members()[name] for name in ("png", "txt", "json", CODES)}
    samples = [{"__key__": f"k{i}", **chosen, "txt": f"text {i}" * (i + 1)} for i in range(3)]
    write_shard(tmp_path / "good.tar", samples)
    good = (tmp_path / "good.tar").read_bytes()
    for case in limited(cases(part), IMAGE_MB):
        rng = random.Random(f"shard/{case}")
        shard = tmp_path / f"{case}.tar"
        shard.write_bytes(damaged(good, rng, [*RANDOM, tar_field, tar_field, tar_field]))
        _check(_spec(shard, *rng.choice(FLOWS)), case)
        if index_path(str(shard)).exists():
            _compare(shard, tmp_path / "good.tar", case)
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
    for case in limited(cases(part)):
        rng = random.Random(f"index/{case}")
        index.write_bytes(damaged(good, rng, [*RANDOM, digits, words]))
        os.utime(index, ns=(modified, modified))
        flow = rng.choice(FLOWS)
        items = list(_items(_spec(shard, *flow)))
        assert len(items) in (0, len(wanted[flow])), case
        for item, content in zip(items, wanted[flow], strict=False):
            if isinstance(item, Skipped):
                assert item.reason == "broken-index", (case, item)
            else:
                assert _content(item) == content, case
