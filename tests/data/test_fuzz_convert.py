"""Random damages of what converters read: samples and counted inputs, or one line that names the file."""

import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from showo_data.captions import ExternalCaptions
from showo_data.convert import (
    Item,
    Target,
    convert,
    folder_items,
    image_items,
    imagenet_items,
    interleaved_items,
    llava_items,
    recaptioned_items,
    text_items,
)
from tests.damages import PARTS, RANDOM, Damage, cases, damaged, digits, limited, tar_field, words
from tests.data.converting import files, image, tar_of

pytestmark = pytest.mark.usefixtures("case_limits")

TEXTS = [f"text {n} é \U0001f642" for n in range(20)]
IMAGES = [image(n, kind) for n, kind in enumerate(["JPEG", "PNG", "WEBP", "BMP", "GIF"])]
JSON_WAYS: tuple[Damage, ...] = (*RANDOM, digits, words)


@dataclass(frozen=True)
class Conversion:
    """A conversion of which one file is damaged.

    Attributes:
        inputs: the good files by path in a folder.
        items: the conversion of that folder.
        victims: the files that may be damaged.
        ways: the damages.
        kept: the members that must be converted, whatever became of the damaged file; given its new bytes.
    """

    inputs: dict[str, bytes]
    items: Callable[[Path], Iterator[Item]]
    victims: tuple[str, ...]
    ways: tuple[Damage, ...] = RANDOM
    kept: Callable[[bytes], list[bytes]] = lambda data: []


def _lines() -> bytes:
    lines = [json.dumps({"id": n, "content": t}, ensure_ascii=False) for n, t in enumerate(TEXTS)]
    return "".join(line + "\n" for line in lines).encode()


def _whole_lines(data: bytes) -> list[bytes]:
    """The texts of the lines that are as they were."""
    good = dict(zip(_lines().split(b"\n"), TEXTS, strict=False))
    return [good[line].encode() for line in data.split(b"\n") if line in good]


def _parquet(columns: dict[str, list[bytes] | list[str]]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream, row_group_size=7)
    return stream.getvalue()


def _llava() -> bytes:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a circle"}]
    entries = [{"id": n, "image": f"{n % 5}.jpg", "conversations": turns} for n in range(8)]
    return json.dumps(entries).encode()


def _several() -> bytes:
    turns = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "both"}]
    entry = {"image": ["0.jpg", "1.jpg"], "conversations": turns}
    return json.dumps([entry] * 4).encode()


def _documents() -> bytes:
    match = [{"image_name": f"{n}.jpg", "matched_text_index": n} for n in range(2)]
    matched = {"text_list": ["one", "two", "three"], "image_info": match}
    parallel = {"images": ["0.jpg", None, "1.jpg"], "texts": [None, "one", None]}
    return "".join(json.dumps(entry) + "\n" for entry in [matched, parallel] * 3).encode()


def _class_tar(name: str) -> bytes:
    return tar_of({f"{name}_{n}.JPEG": data for n, data in enumerate(IMAGES[:3])})


def _shard() -> bytes:
    """A shard with two samples."""
    samples = {"k.jpg": IMAGES[0], "k.txt": b"own", "l.jpg": IMAGES[0], "l.txt": b"own"}
    return tar_of(samples)


@cache
def _conversions() -> list[Conversion]:
    image_files = {f"images/{n}.jpg": data for n, data in enumerate(IMAGES)}
    captions = {f"images/{n}.txt": f"caption {n}".encode() for n in range(5)}
    tars = {f"train/{name}.tar": _class_tar(name) for name in ("n1", "n2")}
    names = {"names.txt": b"n1 tench, Tinca tinca\nn2 goldfish\n"}
    nested = {"whole.tar": tar_of({f"{name}.tar": _class_tar(name) for name in ("n1", "n2")})}
    book = {"book.json": json.dumps({"k": ["one", "two"], "l": "three", "m": None}).encode()}
    table = _parquet({"image": IMAGES * 4, "text": TEXTS})
    copied = IMAGES[:3]  # the formats that are not encoded anew

    def folder(f: Path) -> Iterator[Item]:
        return folder_items(f / "images")

    def journeydb(f: Path) -> Iterator[Item]:
        return recaptioned_items([f"{f}/a.tar"], ExternalCaptions(), journeydb=f / "book.json")

    return [
        Conversion(
            {"a.jsonl": _lines()},
            lambda f: text_items([f"{f}/a.jsonl"]),
            ("a.jsonl",),
            JSON_WAYS,
            _whole_lines,
        ),
        Conversion(
            {"a.jsonl.gz": gzip.compress(_lines())},
            lambda f: text_items([f"{f}/a.jsonl.gz"]),
            ("a.jsonl.gz",),
        ),
        Conversion(
            {"a.parquet": _parquet({"content": TEXTS})},
            lambda f: text_items([f"{f}/a.parquet"]),
            ("a.parquet",),
        ),
        Conversion(
            {"a.parquet": table},
            lambda f: image_items([f"{f}/a.parquet"], text="text"),
            ("a.parquet",),
        ),
        Conversion(
            image_files | {"a.json": _llava()},
            lambda f: llava_items(f / "a.json", f / "images"),
            ("a.json",),
            JSON_WAYS,
        ),
        Conversion(
            image_files | {"a.json": _several()},
            lambda f: llava_items(f / "a.json", f / "images"),
            ("a.json",),
            JSON_WAYS,
        ),
        Conversion(
            image_files | {"a.jsonl": _documents()},
            lambda f: interleaved_items([f"{f}/a.jsonl"], images=f / "images"),
            ("a.jsonl", "images/0.jpg"),
            JSON_WAYS,
        ),
        Conversion(
            tars | names,
            lambda f: imagenet_items(f / "train", f / "names.txt"),
            ("train/n2.tar",),
            (*RANDOM, tar_field, tar_field),
            lambda data: copied,
        ),
        Conversion(
            nested | names,
            lambda f: imagenet_items(f / "whole.tar", f / "names.txt"),
            ("whole.tar",),
            (*RANDOM, tar_field, tar_field),
        ),
        Conversion(
            tars | names,
            lambda f: imagenet_items(f / "train", f / "names.txt"),
            ("names.txt",),
            JSON_WAYS,
            lambda data: copied,
        ),
        Conversion(
            book | {"a.tar": _shard()}, journeydb, ("book.json",), JSON_WAYS, lambda d: copied[:1]
        ),
        Conversion(book | {"a.tar": _shard()}, journeydb, ("a.tar",), (*RANDOM, tar_field)),
        Conversion(
            image_files | captions,
            folder,
            ("images/3.jpg", "images/3.txt"),
            RANDOM,
            lambda d: copied,
        ),
    ]


def _write(folder: Path, inputs: dict[str, bytes]) -> None:
    for name, data in inputs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_inputs(tmp_path: Path, part: int) -> None:
    for case in limited(cases(part)):
        rng = random.Random(f"convert/{case}")
        conversion = rng.choice(_conversions())
        victim = rng.choice(conversion.victims)
        folder = tmp_path / str(case)
        data = damaged(conversion.inputs[victim], rng, conversion.ways)
        _write(folder, conversion.inputs | {victim: data})
        kept = conversion.kept(data)
        try:
            report = convert(conversion.items(folder), Target(out=folder / "out"))
        except (ValueError, OSError) as error:
            assert str(folder) in str(error) and "\n" not in str(error), (case, error)
            assert not kept or victim == "names.txt" or victim in str(error), (case, error)
        else:
            assert not any("unexpected" in reason for reason in report.skipped), (case, report)
            assert report.inputs == report.samples + report.skipped.total(), (case, report)
            stored = list(files(folder / "out").values())
            assert all(member in stored for member in kept), case
        shutil.rmtree(folder)
