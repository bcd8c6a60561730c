"""All known faults of data, as real files: the sample is skipped with a reason, or read correctly."""

import io
import json
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from showo_data import (
    BadSamples,
    FlowSpec,
    MicroBatch,
    Sample,
    Skipped,
    Source,
    build_loader,
    vq_transform,
)

# The members of one sample: extension → bytes; a list of them where an extension comes twice.
Members = list[tuple[str, bytes]]


def _image(form: str = "PNG", mode: str = "RGB", side: int = 16, **options: Any) -> bytes:
    stream = io.BytesIO()
    white = (0, 0, 0, 0) if mode == "CMYK" else "white"
    Image.new(mode, (side, side), white).save(stream, form, **options)
    return stream.getvalue()


def _huge_png(width: int, height: int) -> bytes:
    """A valid white PNG of one bit per pixel: 20,000 × 20,000 pixels take 50 kB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + width // 8) * height), 1)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def _sixteen_bits() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16), 65535, np.uint16)).save(stream, "PNG")
    return stream.getvalue()


def _animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black", "red")]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return stream.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _image("JPEG", exif=exif)


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 0xFF
    return bytes(changed)


def _archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, codes=np.arange(3))
    return stream.getvalue()


def _claimed_codes(count: int) -> bytes:
    """An array file whose header claims ``count`` numbers, of which none follow."""
    stream = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def _captions(value: object) -> Members:
    return [("png", _image()), ("json", json.dumps({"captions": value}).encode())]


def _chat(*roles: str) -> bytes:
    rounds = [{"from": role, "value": "words"} for role in roles]
    return json.dumps({"conversations": rounds}).encode()


GOOD_CHAT = _chat("human", "gpt")


@dataclass(frozen=True)
class Case:
    """A sample, what reads it, and the reason why it is absent; None: it is read."""

    kind: Literal["caption", "conversation", "text", "image"]
    members: Members
    reason: str | None


CASES = {
    "no image": Case("image", [("txt", b"a")], "no-image"),
    "an image under another name": Case("image", [("tiff", _image("TIFF"))], "no-image"),
    "no caption": Case("caption", [("png", _image())], "no-text"),
    "not an image": Case("image", [("jpg", b"<html>404</html>")], "broken-image"),
    "an empty image": Case("image", [("jpg", b"")], "no-image"),
    "an image cut short": Case("image", [("png", _image()[:-30])], "broken-image"),
    "a flipped bit": Case("image", [("png", _flipped(_image(), 45))], "broken-image"),
    "a bomb": Case("image", [("png", _huge_png(20_000, 20_000))], "image-too-large"),
    "an endless line": Case("image", [("png", _huge_png(2_000_000, 1))], "image-too-large"),
    "a pixel": Case("image", [("png", _image(side=1))], "image-too-small"),
    "broken JSON": Case("conversation", [("png", _image()), ("json", b"{")], "broken-json"),
    "JSON of another kind": Case(
        "conversation", [("png", _image()), ("json", b"3")], "broken-json"
    ),
    "not UTF-8": Case("text", [("txt", b"\xff\xfe")], "not-utf8"),
    "an empty conversation": Case(
        "conversation", [("png", _image()), ("json", _chat())], "no-conversation"
    ),
    "no human at first": Case(
        "conversation",
        [("png", _image()), ("json", _chat("gpt", "human"))],
        "conversation-without-human-first",
    ),
    "a conversation whose image is missing": Case(
        "conversation", [("json", GOOD_CHAT)], "no-image"
    ),
    "one member twice": Case("text", [("txt", b"a"), ("txt", b"b")], "duplicate-member"),
    "codes with a pickle": Case("image", [("codes.npy", b"\x93NUMPY\x01\x00")], "broken-codes"),
    "codes in an archive": Case("image", [("codes.npy", _archive())], "broken-codes"),
    "codes for all memory": Case("image", [("codes.npy", _claimed_codes(10**13))], "broken-codes"),
    "endless nesting": Case(
        "conversation", [("png", _image()), ("json", b"[" * 100_000)], "broken-json"
    ),
    "an endless number": Case(
        "conversation", [("png", _image()), ("json", b"9" * 5000)], "broken-json"
    ),
    "captions that are a number": Case("caption", _captions(7), "no-text"),
    "captions that are names": Case("caption", _captions({"a": "white"}), "no-text"),
    "captions among which is none": Case("caption", _captions(["white", None]), "no-text"),
    "CMYK": Case("image", [("jpg", _image("JPEG", "CMYK"))], None),
    "16 bits": Case("image", [("png", _sixteen_bits())], None),
    "animated": Case("image", [("webp", _animated())], None),
    "turned by EXIF": Case("image", [("jpg", _turned())], None),
    "with alpha": Case("image", [("png", _image(mode="RGBA"))], None),
    "a palette": Case("image", [("png", _image(mode="P"))], None),
}


def _tar(path: Path, files: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return str(path)


def _spec(shard: str, kind: Any, **options: Any) -> FlowSpec:
    options = dict[str, Any](streams=1, window=1, batch=1) | options
    return FlowSpec(flow="f", kind=kind, urls=(shard,), transform=vq_transform(512), **options)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_sample_is_skipped_and_a_strange_one_read(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    shard = _tar(tmp_path / "a.tar", [(f"key.{ending}", data) for ending, data in case.members])
    item = Source(_spec(shard, case.kind))[0]
    if case.reason is not None:
        assert item == Skipped("f", 0, shard, "key", case.reason)
        return
    assert isinstance(item, Sample) and item.image_3HW is not None
    assert torch.allclose(item.image_3HW, torch.ones(3, 512, 512), atol=0.02), "all are white"


def test_captions_that_are_one_text_are_one_caption(tmp_path: Path) -> None:
    files = [(f"key.{ending}", data) for ending, data in _captions("a white square")]
    item = Source(_spec(_tar(tmp_path / "a.tar", files), "caption"))[0]
    assert isinstance(item, Sample) and item.text == "a white square"


def _texts(count: int) -> list[tuple[str, bytes]]:
    return [(f"k{i}.txt", b"x" * 600) for i in range(count)]  # 512 + 1024 bytes each


def _cut_in_a_member(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 5 * 1536 + 700])


def _cut_between_members(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 5 * 1536])


def _flip_a_header(path: Path) -> None:
    path.write_bytes(_flipped(path.read_bytes(), 3 * 1536 + 5))


@pytest.mark.parametrize(
    ("damage", "good", "reasons"),
    [
        (_cut_in_a_member, 5, {"truncated": 1, "damaged-shard": 1}),
        (_cut_between_members, 5, {"damaged-shard": 1}),
        (_flip_a_header, 7, {"damaged-shard": 1}),
    ],
)
def test_a_damaged_shard_is_counted_in_every_epoch(
    tmp_path: Path, damage: Callable[[Path], None], good: int, reasons: dict[str, int]
) -> None:
    shard = _tar(tmp_path / "a.tar", _texts(8))
    damage(Path(shard))
    source = Source(_spec(shard, "text"))
    for epoch in range(2):
        items = [source[epoch * len(source) + i] for i in range(len(source))]
        assert sum(isinstance(item, Sample) for item in items) == good
        assert Counter(i.reason for i in items if isinstance(i, Skipped)) == reasons


def test_scattered_members_are_one_sample(tmp_path: Path) -> None:
    files = [("a.png", _image()), ("b.png", _image()), ("a.txt", b"of a"), ("b.txt", b"of b")]
    source = Source(_spec(_tar(tmp_path / "a.tar", files), "caption"))
    assert [getattr(source[p], "text", None) for p in range(2)] == ["of a", "of b"]


def test_a_shard_deleted_during_a_run(tmp_path: Path) -> None:
    shards = [_tar(tmp_path / f"{name}.tar", _texts(4)) for name in "ab"]
    source = Source(FlowSpec(flow="f", kind="text", urls=tuple(shards), batch=1))
    Path(shards[1]).unlink()
    items = [source[p] for p in range(8)]
    assert {(i.shard, i.reason) for i in items if isinstance(i, Skipped)} == {
        (shards[1], "unreadable-shard")
    }
    assert sum(isinstance(item, Sample) for item in items) == 4


def _first(spec: FlowSpec, micro_steps: int, workers: int) -> list[MicroBatch]:
    batches = iter(build_loader([spec], num_workers=workers))
    return [next(batches) for _ in range(micro_steps)]


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("sampling", ["exact", "resampled"])
def test_all_at_once_through_the_loader(tmp_path: Path, sampling: str, workers: int) -> None:
    """One shard of good and bad images, cut off at its end: two epochs, counted by reason and shard."""
    files = [(f"good{i}.png", _image()) for i in range(5)]
    images = {name: case for name, case in CASES.items() if case.kind == "image"}
    for number, case in enumerate(images.values()):
        files += [(f"case{number}.{ending}", data) for ending, data in case.members]
    path = tmp_path / "a.tar"
    shard = _tar(path, [*files, ("last.png", b"x" * 3000)])
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:-1000])
    expected = Counter(case.reason for case in images.values() if case.reason)
    expected["damaged-shard"] += 1
    expected["truncated"] += 1
    good = 5 + sum(case.reason is None for case in images.values())
    size = good + expected.total()
    spec = _spec(shard, "image", batch=size, window=10_000, sampling=sampling)
    bad = BadSamples()
    for batch in _first(spec, 2, workers):
        bad.add(batch.skipped, good=len(batch.samples["f"]))
    assert bad.tried == 2 * size
    assert set(bad.by_shard()) == {shard}
    if sampling == "exact":
        assert bad.by_reason() == {reason: 2 * n for reason, n in expected.most_common()}
    else:
        assert set(bad.by_reason()) <= set(expected) and bad.total > size // 4


def _counted(bad: int, good: int) -> BadSamples:
    counts = BadSamples()
    counts.add([Skipped("f", p, "a.tar", "k", "no-text") for p in range(bad)], good=good)
    return counts


@pytest.mark.parametrize(
    ("bad", "good", "limit", "stops"),
    [
        (1, 0, 0.05, False),
        (10, 0, 0.05, False),
        (11, 0, 0.05, True),
        (11, 500, 0.05, False),
        (51, 949, 0.05, True),
        (50, 950, 0.05, False),
        (1, 10_000, 0.0, True),
        (0, 10_000, 0.0, False),
        (300, 0, 1.0, False),
    ],
)
def test_the_threshold(bad: int, good: int, limit: float, stops: bool) -> None:
    assert _counted(bad, good).exceeds(limit) is stops


def test_counts_of_several_ranks_add_up() -> None:
    whole = BadSamples.merged([_counted(2, 5), _counted(3, 1), _counted(0, 4)])
    assert (whole.total, whole.tried, whole.by_shard()) == (5, 15, {"a.tar": 5})
