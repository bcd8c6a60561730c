"""Documents with images among the text: OBELICS' parallel lists, MMC4's matched sentences."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from showo_data.cli import main_shards
from showo_data.convert import Report, Target, convert, interleaved_items
from showo_data.images import decode
from tests.data.converting import TRANSFORM, files, image, samples

OBELICS = {
    "images": ["a/0.jpg", None, None, "a/1.jpg", "a/2.jpg", None],
    "texts": [None, "one", "two", None, None, "three"],
    "metadata": "[]",
}
MMC4 = {
    "url": "https://a.b",
    "text_list": ["one", "two", "three", "four"],
    "image_info": [
        {"image_name": "a/0.jpg", "raw_url": "u", "matched_text_index": 0, "matched_sim": 0.3},
        {"image_name": "a/2.jpg", "raw_url": "u", "matched_text_index": 3},
        {"image_name": "a/1.jpg", "raw_url": "u", "matched_text_index": 2},
    ],
    "similarity_matrix": [[0.1]],
}
# Document and numbers of its images → as stored.
LAYOUTS: dict[str, tuple[dict[str, Any], list[str | None], list[int]]] = {
    "obelics": (OBELICS, [None, "one\n\ntwo", None, None, "three"], [0, 1, 2]),
    "mmc4": (MMC4, [None, "one two", None, "three", None, "four"], [0, 1, 2]),
}


def _folder(folder: Path, entries: list[Any]) -> Path:
    (folder / "a").mkdir()
    for number in range(3):
        (folder / "a" / f"{number}.jpg").write_bytes(image(number))
    path = folder / "docs.jsonl"
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    path.write_text("\n".join(lines) + "\n")
    return path


def _check(out: Path, texts: list[str | None], numbers: list[int]) -> None:
    (sample,) = samples(out, "conversation", max_images=3).values()
    assert sample.document == texts and sample.images_M3HW is not None
    for number, pixels in zip(numbers, sample.images_M3HW, strict=True):
        assert (pixels == TRANSFORM(decode(image(number)))).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_lines(tmp_path: Path, layout: str) -> None:
    entry, texts, numbers = LAYOUTS[layout]
    path, out = _folder(tmp_path, [entry]), tmp_path / "out"
    assert main_shards(["from-interleaved", str(path), "--out", str(out)]) == 0
    _check(out, texts, numbers)
    assert files(out)["0000000000.0.jpg"] == image(0)
    packed = tmp_path / "b" / "docs.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    command = ["from-interleaved", str(packed), "--images", str(tmp_path)]
    assert main_shards([*command, "--out", str(tmp_path / "2")]) == 0
    assert files(tmp_path / "2") == files(out)


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parquet(tmp_path: Path, layout: str, embedded: bool) -> None:
    """Of OBELICS, images may also be in the file, as the hub stores them."""
    entry, texts, numbers = LAYOUTS[layout]
    if embedded:
        entry = OBELICS | {
            "images": [
                name and {"bytes": image(int(name[2])), "path": None} for name in OBELICS["images"]
            ]
        }
        texts, numbers = LAYOUTS["obelics"][1:]
    else:
        _folder(tmp_path, [])
    parquet.write_table(pa.Table.from_pylist([entry]), tmp_path / "a.parquet")
    report = _converted(tmp_path / "a.parquet", tmp_path / "out")
    assert not report.skipped
    _check(tmp_path / "out", texts, numbers)


def _converted(path: Path, out: Path, **options: Any) -> Report:
    return convert(interleaved_items([str(path)], **options), Target(out=out))


def _obelics(images: list[Any], texts: list[Any]) -> dict[str, Any]:
    return {"images": images, "texts": texts}


def _mmc4(number: Any, name: Any = "a/0.jpg") -> dict[str, Any]:
    match = {"image_name": name, "matched_text_index": number}
    return {"text_list": ["one"], "image_info": [match]}


BAD: list[tuple[str, Any]] = [
    ("malformed-document", {"content": "text"}),
    ("malformed-document", _obelics(["a/0.jpg"], ["one", None])),
    ("malformed-document", _obelics(["a/0.jpg"], ["both"])),
    ("malformed-document", _obelics([3, None], [None, "one"])),
    ("malformed-document", _obelics(["a/0.jpg", None], [None, 3])),
    ("malformed-document", _mmc4(1)),
    ("malformed-document", _mmc4(-1)),
    ("malformed-document", _mmc4("0")),
    ("malformed-document", _mmc4(0, None)),
    ("malformed-document", {"text_list": ["one", None], "image_info": _mmc4(0)["image_info"]}),
    ("malformed-document", {"text_list": ["one"], "image_info": ["a/0.jpg"]}),
    ("malformed-document", {"text_list": ["one"], "image_info": [{}]}),
    ("malformed-document", {"text_list": "one", "image_info": []}),
    ("text-only", {"text_list": ["one"], "image_info": []}),
    ("text-only", {"text_list": ["one"], "image_info": None}),
    ("text-only", _obelics([None], ["one"])),
    ("no-text", _obelics(["a/0.jpg", None], [None, " "])),
    ("no-image", _obelics(["a/0.jpg", "gone.jpg", None], [None, None, "one"])),
    ("broken-image", _obelics(["docs.jsonl", None], [None, "one"])),
    ("image-outside-folder", _mmc4(0, "../../etc/passwd")),
    ("image-is-url", _obelics(["https://a.b/0.jpg", None], [None, "one"])),
    ("not-utf8", _obelics(["a/0.jpg", None], [None, "\ud800"])),
    ("broken-json", "{"),
]


def test_documents_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    path = _folder(tmp_path, [OBELICS, *(entry for _, entry in BAD), MMC4])
    report = _converted(path, tmp_path / "out")
    reasons = [reason for reason, _ in BAD]
    assert report.skipped == {reason: reasons.count(reason) for reason in reasons}
    found = samples(tmp_path / "out", "conversation", max_images=3)
    assert list(found) == ["0000000000", f"{len(BAD) + 1:010d}"]


def test_long_documents_are_cut_before_an_image(tmp_path: Path) -> None:
    """All texts and images remain, in order; images without any text in their piece do not."""
    path = _folder(
        tmp_path, [OBELICS, MMC4, _obelics(["a/0.jpg"] * 3 + [None], [None] * 3 + ["x"])]
    )
    report = _converted(path, tmp_path / "out", max_images=1)
    assert report.samples == 2 + 3 + 1 and report.inputs == 3
    found = samples(tmp_path / "out", "conversation")
    assert {key: sample.document for key, sample in found.items()} == {
        "0000000000-0000": [None, "one\n\ntwo"],
        "0000000000-0001": [None, "three"],
        "0000000001-0000": [None, "one two"],
        "0000000001-0001": [None, "three"],
        "0000000001-0002": [None, "four"],
        "0000000002": [None, "x"],
    }
    three = found["0000000000-0001"].images_M3HW
    assert three is not None and (three[0] == TRANSFORM(decode(image(2)))).all()


def test_mistakes_in_the_arguments(tmp_path: Path) -> None:
    path = _folder(tmp_path, [OBELICS])
    parquet.write_table(pa.table({"text": ["a"], "url": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet: it has 'text', 'url'; expected .* 'texts', or"
    ):
        list(interleaved_items([f"{tmp_path}/a.parquet"]))
    with pytest.raises(ValueError, match=r"expected \.parquet, \.jsonl or \.jsonl\.gz"):
        list(interleaved_items([str(tmp_path / "a/0.jpg")]))
    with pytest.raises(ValueError, match="--max-images must be at least 1, not 0"):
        list(interleaved_items([str(path)], max_images=0))
    with pytest.raises(FileNotFoundError, match="no folder"):
        list(interleaved_items([str(path)], images=tmp_path / "gone"))


def test_a_file_that_is_no_parquet_is_one_bad_input(tmp_path: Path) -> None:
    path = _folder(tmp_path, [OBELICS])
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    items = interleaved_items([f"{tmp_path}/a.parquet", str(path)])
    report = convert(items, Target(out=tmp_path / "out"))
    assert report.skipped == {"unreadable-file": 1} and report.samples == 1


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _converted(_folder(tmp_path, [OBELICS]), tmp_path / "out")
    sheet = tmp_path / "sheet.png"
    shard = str(tmp_path / "out/train-000000.tar")
    assert main_shards(["show", shard, "--out", str(sheet)]) == 0
    assert "<image> one two <image> <image> three" in " ".join(capsys.readouterr().out.split())
    assert sheet.exists()


def test_missing_images_can_be_left_out(tmp_path: Path) -> None:
    """The texts around them are then next to each other; a document without any image is left out."""
    gone = OBELICS | {"images": ["a/0.jpg", None, None, "a/gone.jpg", "https://a.b/c.jpg", None]}
    none = OBELICS | {"images": ["a/gone.jpg"], "texts": [None]}
    path = _folder(tmp_path, [gone, none])
    convert_to = Target(out=tmp_path / "out")
    report = convert(interleaved_items([str(path)], drop_missing=True), convert_to)
    assert (report.samples, report.skipped) == (1, {"no-image": 3}), "each image is counted"
    _check(tmp_path / "out", [None, "one\n\ntwo\n\nthree"], [0])
