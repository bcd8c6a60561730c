"""LLaVA's JSON and image folder."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from showo_data.cli import main_shards
from showo_data.convert import Target, convert, llava_items
from showo_data.convert.elements import read_array
from showo_data.images import decode
from tests.data.converting import TRANSFORM, files, image, same_image, samples


def _rounds(number: int, count: int = 1) -> list[dict[str, str]]:
    turns = []
    for i in range(count):
        marker = "" if i else "<image>\n"
        turns.append({"from": "human", "value": f"{marker}question {number}.{i}?"})
        turns.append({"from": "gpt", "value": f"answer {number}.{i} ünd ü"})
    return turns


def _entry(number: int, rounds: int = 1) -> dict[str, Any]:
    folder = "coco/train2017" if number % 2 else "gqa/images"
    name = f"{folder}/{number:06d}.jpg"
    return {"id": f"{number:06d}", "image": name, "conversations": _rounds(number, rounds)}


def _set(folder: Path, entries: list[Any]) -> Path:
    """A JSON file and, under ``images``, the images that it names."""
    for number, entry in enumerate(entries):
        path = folder / "images" / str(entry.get("image"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    path = folder / "set.json"
    path.write_text(json.dumps(entries, indent=1))
    return path


def test_conversations_of_one_and_more_rounds(tmp_path: Path) -> None:
    """The pretraining set has one round each, the tuning set several."""
    entries = [_entry(number, rounds=1 + number % 3) for number in range(11)]
    path, out = _set(tmp_path, entries), tmp_path / "out"
    command = ["from-llava", str(path), "--images", f"{tmp_path}/images", "--out", str(out)]
    assert main_shards([*command, "--shard-size", "4"]) == 0
    found, stored = samples(out, "conversation"), files(out)
    assert len(list(out.glob("*.tar"))) == 3
    for number, entry in enumerate(entries):
        key = f"{number:010d}"
        turns = [(turn["from"], turn["value"]) for turn in entry["conversations"]]
        assert found[key].conversation == turns
        assert stored[f"{key}.jpg"] == image(number)
        assert same_image(found[key], image(number))


BAD: dict[str, Any] = {
    "text-only": {"id": "x", "conversations": _rounds(1)},
    "no-image": {"image": "gone.jpg", "conversations": _rounds(1)},
    "broken-image": {"image": "broken.jpg", "conversations": _rounds(1)},
    "image-outside-folder": {"image": "../secret.jpg", "conversations": _rounds(1)},
    "no-conversation": {"image": "good.jpg"},
    "malformed-conversation": {
        "image": "good.jpg",
        "conversations": [_rounds(1)[0], _rounds(1)[0]],
    },
    "conversation-without-human-first": {"image": "good.jpg", "conversations": _rounds(1)[1:]},
    "malformed-item": ["not an object"],
    "not-utf8": {"image": "good.jpg", "conversations": [{"from": "human", "value": "\ud800"}]},
}


def test_items_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "secret.jpg").write_bytes(image(1))
    (images / "good.jpg").write_bytes(image(1))
    (images / "broken.jpg").write_bytes(b"x")
    path = tmp_path / "set.json"
    good = {"image": "good.jpg", "conversations": _rounds(7)}
    path.write_text(json.dumps([*BAD.values(), good, {**good, "image": {"path": "good.jpg"}}]))
    report = convert(llava_items(path, images), Target(out=tmp_path / "out"))
    assert report.skipped == {**dict.fromkeys(BAD, 1), "malformed-item": 2}
    assert report.examples["text-only"] == f"{path}, item 0"
    assert list(samples(tmp_path / "out", "conversation")) == [f"{len(BAD):010d}"]


def test_absolute_paths_outside_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(image(1))
    (tmp_path / "images").mkdir()
    path = tmp_path / "set.json"
    entries = [{"image": str(tmp_path / "secret.jpg"), "conversations": _rounds(1)}]
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="image-outside-folder"):
        convert(llava_items(path, tmp_path / "images"), Target(out=tmp_path / "out"))


def test_several_images_are_numbered(tmp_path: Path) -> None:
    """As in M4-Instruct: ``image`` is a list, and every image has a marker."""
    names = ["a/1.jpg", "b/2.png", "a/3.jpg"]
    for number, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number, "PNG" if name.endswith("png") else "JPEG"))
    ask = [
        {"from": "human", "value": "<image>\n<image>\nwhich is red?"},
        {"from": "gpt", "value": "the first"},
        {"from": "human", "value": "and this <image>?"},
        {"from": "gpt", "value": "no"},
    ]
    bad = [
        ("marker-without-image", {"image": names[:2], "conversations": ask}),
        ("image-without-marker", {"image": names, "conversations": ask[:2]}),
        ("no-image", {"image": [*names[:2], "gone.jpg"], "conversations": ask}),
        ("malformed-item", {"image": [*names[:2], 3], "conversations": ask}),
        ("no-image", {"image": [names[0], None, names[2]], "conversations": ask[:2]}),
        ("no-image", {"image": ["", names[0]], "conversations": ask[:2]}),
        ("marker-without-image", {"image": names[0], "conversations": ask[:2]}),
        ("marker-without-image", {"image": names[:1], "conversations": ask[:2]}),
    ]
    entries = [{"image": names, "conversations": ask}, *(entry for _, entry in bad)]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(entries))
    report = convert(llava_items(path, tmp_path / "images"), Target(out=tmp_path / "out"))
    assert report.skipped == Counter(reason for reason, _ in bad)
    stored = files(tmp_path / "out")
    assert set(stored) == {f"0000000000.{n}" for n in ("0.jpg", "1.png", "2.jpg", "json")}
    (sample,) = samples(tmp_path / "out", "conversation", max_images=3).values()
    assert sample.conversation == [(turn["from"], turn["value"]) for turn in ask]
    assert sample.images_M3HW is not None
    for number, pixels in enumerate(sample.images_M3HW):
        kind = "PNG" if number == 1 else "JPEG"
        assert (pixels == TRANSFORM(decode(image(number, kind)))).all()


@pytest.mark.parametrize("chunk", [1, 3, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_element_by_element(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    elements = [{"a": [1, "]", {"b": ", }"}]}, {}, {"ü": 'quote " and \\ [' * 9}, {"z": None}]
    path = tmp_path / "a.json"
    path.write_text("  " * (chunk > 4) + json.dumps(elements, indent=indent))
    monkeypatch.setattr("showo_data.convert.elements._CHUNK", chunk)
    assert [element for element, _ in read_array(path)] == elements


@pytest.mark.parametrize("text", ["{}", "", '{"a": [1]}'])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON list"):
        list(read_array(path))


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b": ', '[{"a": 1}, x]', '[{"a": 1}'])
def test_a_broken_list_gives_what_was_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    elements = read_array(path)
    assert next(elements)[0] == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.json: broken JSON after 1 elements"):
        next(elements)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        list(llava_items(tmp_path / "a.json", tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        list(llava_items(tmp_path / "a.json", tmp_path))


def test_links_in_the_folder_may_lead_out_of_it(tmp_path: Path) -> None:
    """LLaVA's ``images/coco`` is mostly a link, and so are the files of a snapshot of the hub."""
    images, elsewhere = tmp_path / "images", tmp_path / "blobs"
    images.mkdir()
    elsewhere.mkdir()
    (elsewhere / "0f.jpg").write_bytes(image(1))
    (images / "coco").symlink_to(elsewhere)
    (images / "x.jpg").symlink_to("../blobs/0f.jpg")
    names = ["coco/0f.jpg", "x.jpg", "coco/../x.jpg", str(images / "x.jpg")]
    outside = ["coco/../../blobs/0f.jpg", "../blobs/0f.jpg", str(elsewhere / "0f.jpg")]
    entries = [{"image": name, "conversations": _rounds(1)} for name in names + outside]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(entries))
    report = convert(llava_items(path, images), Target(out=tmp_path / "out"))
    assert report.samples == len(names)
    assert report.skipped == {"image-outside-folder": len(outside)}
