"""Images embedded in Parquet, and folders of one's own images."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from showo_data.cli import main_shards
from showo_data.convert import Target, convert, folder_items, image_items
from tests.data.converting import files, image, same_image, samples

IMAGES = [image(number, "PNG" if number % 3 else "JPEG") for number in range(23)]


def _column(form: str) -> Any:
    if form == "binary":
        return pa.array(IMAGES, pa.binary())
    if form == "large binary":
        return pa.array(IMAGES, pa.large_binary())
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(IMAGES)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@pytest.mark.parametrize("form", ["hub", "binary", "large binary"])
def test_embedded_images(tmp_path: Path, form: str) -> None:
    """RecA's set: columns id, prompt, llava and image; the reconstruction flow reads images alone."""
    captions = [f"caption {number}" for number in range(len(IMAGES))]
    table = pa.table({"id": captions, "llava": captions, "image": _column(form)})
    parquet.write_table(table, tmp_path / "train_000.parquet", row_group_size=7)
    out = tmp_path / "out"
    command = ["from-parquet", f"{tmp_path}/train_{{000..000}}.parquet", "--out", str(out)]
    assert main_shards([*command, "--shard-size", "10"]) == 0
    found = samples(out, "image")
    assert len(found) == len(files(out)) == 23
    assert set(files(out).values()) == set(IMAGES)
    for number, data in enumerate(IMAGES):
        assert same_image(found[f"{number:010d}"], data)


def test_embedded_images_with_captions(tmp_path: Path) -> None:
    captions = [f"caption {number}" for number in range(len(IMAGES))]
    table = pa.table({"llava": captions, "image": _column("hub")})
    parquet.write_table(table, tmp_path / "a.parquet")
    out = tmp_path / "out"
    command = ["from-parquet", f"{tmp_path}/a.parquet", "--text", "llava", "--out", str(out)]
    assert main_shards(command) == 0
    found = samples(out, "caption")
    assert [found[f"{i:010d}"].text for i in range(23)] == captions


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = [
        {"bytes": IMAGES[0], "path": None},
        {"bytes": None, "path": "elsewhere.png"},
        None,
        {"bytes": b"rubbish", "path": None},
        {"bytes": IMAGES[1], "path": None},
    ]
    parquet.write_table(
        pa.table({"image": rows, "text": ["a", "b", "c", "d", " "]}), tmp_path / "a.parquet"
    )
    items = image_items([f"{tmp_path}/a.parquet"], text="text")
    report = convert(items, Target(out=tmp_path / "out"))
    assert report.skipped == {"no-image": 2, "broken-image": 1, "no-text": 1}
    assert set(files(tmp_path / "out")) == {"0000000000.jpg", "0000000000.txt"}


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"photo": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'image'; it has 'photo'"):
        list(image_items([f"{tmp_path}/a.parquet"]))


def test_a_row_group_is_not_held_whole(tmp_path: Path) -> None:
    """A row group of 60 MB in pages of 1 MB."""
    head = image(1)
    rows = [head + os.urandom(300_000) for _ in range(200)]
    table = pa.table({"image": rows})
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=4)
    del table
    before, highest = pa.total_allocated_bytes(), 0
    for number, item in enumerate(image_items([f"{tmp_path}/a.parquet"])):
        assert item.load() == [{"jpg": rows[number]}]
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert highest < 30e6


def test_a_folder_of_images_with_captions_beside_them(tmp_path: Path) -> None:
    source, out = tmp_path / "mine", tmp_path / "out"
    kinds = {"0.webp": "WEBP", "a/1.JPG": "JPEG", "b/2.png": "PNG", "b/3.with.dots.png": "PNG"}
    for number, (name, kind) in enumerate(kinds.items()):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number, kind))
        path.with_suffix(".txt" if number else ".caption").write_text(f"caption {number}")
    (source / "notes.md").write_text("not an image")
    assert main_shards(["from-folder", str(source), "--out", str(out)]) == 0
    found = samples(out, "caption")
    assert [found[key].text for key in sorted(found)] == [f"caption {i}" for i in range(4)]
    for number, (key, kind) in enumerate(zip(sorted(found), kinds.values(), strict=True)):
        assert same_image(found[key], image(number, kind))


def test_images_without_captions_are_for_reconstruction(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.jpg").write_bytes(image(3))
    convert(folder_items(tmp_path / "mine"), Target(out=tmp_path / "out"))
    assert files(tmp_path / "out") == {"0000000000.jpg": image(3)}
    with pytest.raises(FileNotFoundError, match="no folder"):
        list(folder_items(tmp_path / "gone"))


def test_max_side_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.png").write_bytes(image(3, "PNG", side=40))
    command = ["from-folder", f"{tmp_path}/mine", "--out", f"{tmp_path}/out"]
    assert main_shards([*command, "--max-side", "16"]) == 0
    assert list(files(tmp_path / "out")) == ["0000000000.jpg"]
    with pytest.raises(ValueError, match="--max-side must be at least 1, not 0"):
        main_shards([*command, "--max-side", "0"])
