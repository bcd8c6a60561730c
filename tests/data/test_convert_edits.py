"""Edits in Parquet as the hub serves them, and in JSON lines beside their images."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from showo_data.cli import main_shards
from showo_data.convert import Target, convert, edit_items
from showo_data.images import decode
from showo_data.members import EDIT_CODES
from tests.data.converting import TRANSFORM, files, image, same_image, samples

HUB = {
    "InstructPix2Pix": ("original_image", "edit_prompt", "edited_image"),
    "MagicBrush": ("source_img", "instruction", "target_img"),
    "UltraEdit": ("source_image", "edit_prompt", "edited_image"),
    "OmniEdit": ("src_img", "edited_prompt_list", "edited_img"),
    "AnyEdit": ("image_file", "edit_instruction", "edited_file"),
}


def _struct(data: bytes | None) -> dict[str, Any]:
    return {"bytes": data, "path": "a.png"}


def _read(out: Path) -> dict[str, Any]:
    return samples(out, "edit", encoded=EDIT_CODES)


@pytest.mark.parametrize("name", HUB)
def test_columns_of_the_hub(tmp_path: Path, name: str) -> None:
    """Image columns are {bytes, path}; OmniEdit's instructions are lists; other columns are not read."""
    source, instruction, target = HUB[name]
    texts: list[Any] = [f"make it {number}" for number in range(5)]
    if instruction == "edited_prompt_list":
        texts = [[text, f"{text}!"] for text in texts]
    table = pa.table(
        {
            "id": list("abcde"),
            source: [_struct(image(number)) for number in range(5)],
            instruction: texts,
            target: [_struct(image(number + 50, "PNG")) for number in range(5)],
            "mask_img": [_struct(b"") for _ in range(5)],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    out = tmp_path / "out"
    assert main_shards(["from-edits", f"{tmp_path}/*.parquet", "--out", str(out)]) == 0
    found, stored = _read(out), files(out)
    for number, text in enumerate(texts):
        sample = found[f"{number:010d}"]
        assert stored[f"{number:010d}.source.jpg"] == image(number)
        assert stored[f"{number:010d}.target.png"] == image(number + 50, "PNG")
        assert same_image(sample, image(number + 50, "PNG"))
        assert (sample.source_3HW == TRANSFORM(decode(image(number)))).all()
        assert sample.text == text or sample.text in text


def _lines(folder: Path, entries: list[Any]) -> Path:
    (folder / "images").mkdir()
    for name, number in (("a.jpg", 1), ("b.jpg", 2)):
        (folder / "images" / name).write_bytes(image(number))
    path = folder / "edits.jsonl"
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = {"source": "images/a.jpg", "target": "images/b.jpg", "instruction": "make it b"}


def test_json_lines_beside_their_images(tmp_path: Path) -> None:
    path, out = _lines(tmp_path, [GOOD, {**GOOD, "task": "x"}]), tmp_path / "out"
    assert main_shards(["from-edits", str(path), "--out", str(out)]) == 0
    assert [sample.text for sample in _read(out).values()] == ["make it b"] * 2
    renamed = {"before": "a.jpg", "after": "b.jpg", "ask": ["one", "two"]}
    path.write_text(json.dumps(renamed) + "\n")
    keys = ["--source", "before", "--target", "after", "--instruction", "ask"]
    images = ["--images", str(tmp_path / "images")]
    assert main_shards(["from-edits", str(path), *keys, *images, "--out", str(out / "2")]) == 0
    (sample,) = _read(out / "2").values()
    assert sample.text in ("one", "two")


def test_paths_in_parquet(tmp_path: Path) -> None:
    """ImgEdit's columns: lists of one path each, of files that its archives hold."""
    _lines(tmp_path, [])
    table = pa.table(
        {
            "input_images": [["a.jpg"], ["a.jpg", "b.jpg"], ["gone.jpg"]],
            "output_images": [["b.jpg"]] * 3,
            "prompt": ["make it b"] * 3,
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    columns = {"instruction": "prompt"}  # elsewhere, a caption of the target has this name
    items = edit_items([f"{tmp_path}/a.parquet"], images=tmp_path / "images", columns=columns)
    report = convert(items, Target(out=tmp_path / "out"))
    assert report.skipped == {"no-source": 2}
    stored = files(tmp_path / "out")
    assert stored["0000000000.source.jpg"] == image(1)
    assert stored["0000000000.target.jpg"] == image(2)


def test_sessions_of_several_turns(tmp_path: Path) -> None:
    """SEED-Data-Edit: a turn edits what the turn before made; two turns need an image that is missing."""
    session: dict[str, Any] = {"source_image": "images/a.jpg"}
    for turn, name in ((1, "images/b.jpg"), (2, "images/a.jpg"), (3, None), (4, "images/b.jpg")):
        session |= {f"edit_image_{turn}": name, f"instruction_{turn}": f"do {turn}"}
    lost = {**session, "edit_image_2": "images/gone.jpg", "edit_image_3": "images/a.jpg"}
    nothing = {"source_image": "images/a.jpg", "edit_image_1": None, "instruction_1": "x"}
    gap = {**session, "instruction_9": "x"}
    del gap["edit_image_3"]
    path = _lines(tmp_path, [session, nothing, lost, gap, {"source_image": "images/a.jpg"}])
    report = convert(edit_items([str(path)]), Target(out=tmp_path / "out"))
    # Of the third, the first turn and the fourth; the missing file is target and source of the others.
    assert (report.samples, report.skipped) == (6, {"no-target": 5, "no-source": 3})
    stored = files(tmp_path / "out")
    with pytest.raises(ValueError, match="name the target with --target"):
        list(edit_items([str(path)], columns={"target": "edited"}))
    for piece, (source, target) in enumerate(((1, 2), (2, 1))):
        key = f"0000000000-{piece:04d}"
        assert stored[f"{key}.txt"].decode() == f"do {piece + 1}"
        assert stored[f"{key}.source.jpg"] == image(source)
        assert stored[f"{key}.target.jpg"] == image(target)


def test_blank_instructions_of_a_list_are_left_out(tmp_path: Path) -> None:
    path = _lines(tmp_path, [{**GOOD, "instruction": ["", "make it b", " "]}])
    convert(edit_items([str(path)]), Target(out=tmp_path / "out"))
    assert [sample.text for sample in _read(tmp_path / "out").values()] == ["make it b"]


BAD: list[tuple[str, Any]] = [
    ("no-source", {**GOOD, "source": None}),
    ("no-source", {**GOOD, "source": "images/gone.jpg"}),
    ("no-target", {k: v for k, v in GOOD.items() if k != "target"}),
    ("no-target", {**GOOD, "target": ["images/b.jpg", "images/a.jpg"]}),
    ("no-text", {**GOOD, "instruction": " "}),
    ("no-text", {**GOOD, "instruction": []}),
    ("no-text", {**GOOD, "instruction": ["a", 3]}),
    ("broken-image", {**GOOD, "target": "edits.jsonl"}),
    ("image-outside-folder", {**GOOD, "source": "../../etc/passwd"}),
    ("unreadable-source", {**GOOD, "source": "a\0b"}),
    ("not-utf8", {**GOOD, "instruction": "\ud800"}),
    ("broken-json", "{"),
    ("broken-json", "[1]"),
]


def test_lines_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    path = _lines(tmp_path, [GOOD, *(entry for _, entry in BAD), GOOD])
    report = convert(edit_items([str(path)]), Target(out=tmp_path / "out"))
    wanted: dict[str, int] = {}
    for reason, _ in BAD:
        wanted[reason] = wanted.get(reason, 0) + 1
    assert report.skipped == wanted
    assert list(_read(tmp_path / "out")) == ["0000000000", f"{len(BAD) + 1:010d}"]


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    good = _struct(image(1))
    table = pa.table(
        {
            "source_img": [good, _struct(None), None, good, good],
            "target_img": [good, good, good, _struct(b"rubbish"), good],
            "instruction": ["a", "a", "a", "a", None],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    report = convert(edit_items([f"{tmp_path}/*.parquet"]), Target(out=tmp_path / "out"))
    assert report.skipped == {
        "no-source": 2,
        "broken-image": 1,
        "no-text": 1,
        "unreadable-file": 1,
    }
    assert set(files(tmp_path / "out")) == {
        f"0000000000.{name}" for name in ("txt", "source.jpg", "target.jpg")
    }


def test_missing_columns_are_named_with_their_option(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"photo": [b""], "instruction": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet: no column 'source' or .*; it has 'photo'.*--source"
    ):
        list(edit_items([f"{tmp_path}/a.parquet"]))
    with pytest.raises(
        ValueError, match=r"no column 'after'; it has .* name the target with --target"
    ):
        columns = {"source": "photo", "target": "after"}
        list(edit_items([f"{tmp_path}/a.parquet"], columns=columns))
    path = _lines(tmp_path, [{"source": "a", "target": "b", "text": "c"}])
    with pytest.raises(ValueError, match=r"it has 'source', 'target', 'text': .*--instruction"):
        list(edit_items([str(path)]))
    with pytest.raises(ValueError, match=r"expected \.parquet or \.jsonl"):
        list(edit_items([str(tmp_path / "images/a.jpg")]))
    with pytest.raises(FileNotFoundError, match="no folder"):
        list(edit_items([str(path)], images=tmp_path / "gone"))
