"""A bad input costs a conversion that input alone, a broken file its rest; both are counted and named."""

import errno
import gzip
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from showo_data.captions import ExternalCaptions
from showo_data.convert import (
    Item,
    Report,
    Target,
    convert,
    folder_items,
    image_items,
    imagenet_items,
    llava_items,
    recaptioned_items,
    text_items,
)
from showo_data.convert.elements import BROKEN, read_array, read_object
from showo_data.convert.imagenet import read_class_names
from showo_data.shards import write_shard
from tests.data.converting import files, image, samples, tar_of

BOM = b"\xef\xbb\xbf"
LONG_NUMBER = "7" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
NAMES = "n1 tench\nn2 goldfish\n"


def _converted(items: Iterator[Item], folder: Path) -> Report:
    return convert(items, Target(out=folder))


def _texts(folder: Path) -> list[str]:
    return [str(sample.text) for _, sample in sorted(samples(folder, "text").items())]


BAD_LINES = {
    b'{"content": "half \\ud83d of a pair"}': "not-utf8",
    b'{"content": "a", "id": %s}' % LONG_NUMBER.encode(): "broken-json",
    b'{"content": %s}' % DEEP.encode(): "broken-json",
    b"\0" * 100: "broken-json",
    b'{"content": "\xff"}': "not-utf8",
    b'{"content": {"a": 1}}': "no-text",
    b"null": "broken-json",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_costs_itself(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"content": "before"}\n' + line + b'\n{"content": "after"}\n')
    report = _converted(text_items([str(path)]), tmp_path / "out")
    assert report.skipped == {BAD_LINES[line]: 1}
    assert report.examples == {BAD_LINES[line]: f"{path}, line 2"}
    assert _texts(tmp_path / "out") == ["before", "after"]


def test_json_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u0085d", "e\u2029\x0bf\x0cg\x1ch"]
    lines = [json.dumps({"content": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes(BOM + "\r\n".join(lines).encode() + b"\r\n")
    report = _converted(text_items([f"{tmp_path}/a.jsonl"]), tmp_path / "out")
    assert _texts(tmp_path / "out") == texts and not report.skipped


def _gz(name: str) -> bytes:
    lines = b"".join(b'{"content": "%s %d"}\n' % (name.encode(), n) for n in range(3000))
    return gzip.compress(lines)


def test_a_broken_gz_keeps_what_was_read_before(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(_gz("a")[:-2000])
    (tmp_path / "b.jsonl.gz").write_bytes(_gz("b")[:-8] + b"\1" * 8)  # a wrong checksum
    (tmp_path / "c.jsonl.gz").write_bytes(b"<html>")
    (tmp_path / "d.jsonl.gz").write_bytes(_gz("d"))
    report = _converted(text_items([f"{tmp_path}/*.jsonl.gz"]), tmp_path / "out")
    texts = _texts(tmp_path / "out")
    assert report.skipped == {"unreadable-rest": 2, "unreadable-file": 1}
    assert report.examples["unreadable-file"] == f"{tmp_path}/c.jsonl.gz"
    count = sum(text.startswith("a ") for text in texts)
    assert 0 < count < 3000
    assert report.examples["unreadable-rest"] == f"{tmp_path}/a.jsonl.gz, from line {count + 1} on"
    for name, number in (("a", count), ("b", 3000), ("d", 3000)):
        assert [t for t in texts if t[0] == name] == [f"{name} {n}" for n in range(number)]


def test_files_that_macos_leaves_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "good"}\n')
    (tmp_path / "._a.jsonl").write_bytes(b"\0\5\x16\7")
    _converted(text_items([f"{tmp_path}/[.a]*.jsonl"]), tmp_path / "text")
    assert _texts(tmp_path / "text") == ["good"]
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "._a.jpg", "._a.txt"):
        (folder / name).write_bytes(image(1) if name == "a.jpg" else b"\0\5\x16\7")
    assert _converted(folder_items(folder), tmp_path / "out").inputs == 1


def _llava(folder: Path, entries: list[str], end: str = "]") -> Report:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "x.jpg").write_bytes(image(1))
    path = folder / "set.json"
    path.write_text("[" + ",".join(entries) + end, encoding="utf-8", errors="surrogatepass")
    return _converted(llava_items(path, folder / "images"), folder / "out")


def _entry(image_json: str = '"x.jpg"', roles: tuple[str, str] = ("human", "gpt")) -> str:
    turns = [{"from": role, "value": f"say {role}"} for role in roles]
    return f'{{"image": {image_json}, "conversations": {json.dumps(turns)}}}'


BAD_ENTRIES = {
    f'{{"image": "x.jpg", "id": {DEEP}}}': "broken-json",
    f'{{"image": "x.jpg", "conversations": {LONG_NUMBER}}}': "malformed-conversation",
    '{"image": "x.jpg", "conversations": [{]}': "broken-json",
    '{"image": "x.jpg" "id": "]"}': "broken-json",
    '{"image": "x.jpg", "id": "a\nb"}': "broken-json",
    _entry('"a\\u0000b.jpg"'): "unreadable-image",
    _entry('"\\ud83d.jpg"'): "unreadable-image",
    _entry(f'"{"a" * 5000}.jpg"'): "unreadable-image",
    _entry('"."'): "unreadable-image",
    _entry("null"): "text-only",
    _entry("[]"): "text-only",
    _entry('""'): "text-only",
    _entry("[null]"): "text-only",
    _entry('["x.jpg", "x.jpg"]'): "image-without-marker",
    _entry("3"): "malformed-item",
    _entry("[3]"): "malformed-item",
    "3": "malformed-item",
}


@pytest.mark.parametrize("entry", BAD_ENTRIES, ids=range(len(BAD_ENTRIES)))
def test_a_bad_llava_item_costs_itself(tmp_path: Path, entry: str) -> None:
    report = _llava(tmp_path, [_entry(), entry, _entry()])
    assert report.skipped == {BAD_ENTRIES[entry]: 1} and report.samples == 2
    assert report.examples == {BAD_ENTRIES[entry]: f"{tmp_path}/set.json, item 1"}


def test_a_broken_llava_file_keeps_the_items_before(tmp_path: Path) -> None:
    report = _llava(tmp_path, [_entry(), _entry(), '{"image": "x.j'], end="")
    assert report.skipped == {"unreadable-rest": 1} and report.samples == 2
    assert report.examples == {"unreadable-rest": f"{tmp_path}/set.json, from item 2 on"}


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_what_is_behind_the_list_is_not_lost_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """As ``cat a.json b.json`` makes it."""
    monkeypatch.setattr("showo_data.convert.elements._CHUNK", chunk)
    report = _llava(tmp_path, [_entry(), _entry()], end=f"]\n[{_entry()}]\n")
    assert report.skipped == {"unreadable-rest": 1} and report.samples == 2
    assert report.examples == {"unreadable-rest": f"{tmp_path}/set.json, from item 2 on"}
    (tmp_path / "set.json").write_text(f"[{_entry()}] \n\t\n")
    assert len(list(read_array(tmp_path / "set.json"))) == 1


def test_one_image_in_a_list_and_the_roles_of_other_chat_formats(tmp_path: Path) -> None:
    report = _llava(tmp_path, [_entry('["x.jpg"]', ("user", "assistant"))])
    assert not report.skipped
    (sample,) = samples(tmp_path / "out", "conversation").values()
    assert sample.conversation == [("human", "say user"), ("gpt", "say assistant")]


def test_a_circle_of_links_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").symlink_to("a.jpg")
    report = _llava(tmp_path, [_entry(), _entry('"a.jpg"')])
    assert report.samples == 1 and report.skipped == {"unreadable-image": 1}


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_elements_behind_a_broken_one_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("showo_data.convert.elements._CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_bytes(BOM + b'[12345, {"a": [1,]}, "\\" ]}", [{"x" 1}, "]"], {"b": 1}]')
    elements = [element for element, _ in read_array(path)]
    assert elements == [12345, BROKEN, '" ]}', BROKEN, {"b": 1}]
    path.write_bytes(BOM + b' {"a" : ["x", "y"] , "b": {"c" 1}, "d":12345}')
    assert list(read_object(path)) == [("a", ["x", "y"]), ("b", BROKEN), ("d", 12345)]


@pytest.mark.parametrize(
    "text", ['{"a" "b"}', '{"a": ', "{1: 2}", '{"a": [1]', '{"a": 1}{"b": 2}', '{"a": 1} x']
)
def test_a_broken_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: broken JSON after \d elements"):
        list(read_object(tmp_path / "a.json"))


def test_one_bad_key_of_journeydb_costs_its_sample(tmp_path: Path) -> None:
    keys = ["good", "null", "number", "deep", "long", "half", "blank", "partly", "other"]
    stored = [{"__key__": key, "jpg": image(1), "txt": f"own {key}"} for key in keys]
    write_shard(tmp_path / "a.tar", stored)
    book = {"good": '["one"]', "null": "null", "number": "3", "deep": DEEP, "long": LONG_NUMBER}
    book |= {"half": '["\\ud83d"]', "blank": '[" "]', "partly": '[null, "two"]'}
    text = ",".join(f'"{key}": {value}' for key, value in book.items())
    (tmp_path / "book.json").write_bytes(BOM + f"{{{text}}}".encode())
    items = recaptioned_items(
        [f"{tmp_path}/a.tar"], ExternalCaptions(), journeydb=tmp_path / "book.json"
    )
    report = _converted(items, tmp_path / "out")
    assert report.skipped == {"malformed-captions": 3, "not-utf8": 1}
    texts = [sample.text for _, sample in sorted(samples(tmp_path / "out", "caption").items())]
    assert texts == ["one", "own null", "own blank", "two", "own other"]


def _class_tars(folder: Path) -> dict[str, bytes]:
    """Two classes of 4 images each."""
    source = folder / "train"
    source.mkdir()
    (folder / "names.txt").write_bytes(BOM + NAMES.encode())
    return {f"{c}.tar": tar_of({f"{c}_{i}.JPEG": image(1) for i in range(4)}) for c in ("n1", "n2")}


@pytest.mark.parametrize(
    "bad", [b"<html>no such file</html>", gzip.compress(b"x" * 9, mtime=0), b"", b"\0"]
)
def test_a_class_tar_that_is_none_is_named(tmp_path: Path, bad: bytes) -> None:
    tars, names = _class_tars(tmp_path), tmp_path / "names.txt"
    for name, data in {**tars, "n2.tar": bad}.items():
        (tmp_path / "train" / name).write_bytes(data)
    whole = tmp_path / "whole.tar"
    whole.write_bytes(tar_of({**tars, "n2.tar": bad}))
    for source, shown in ((tmp_path / "train", "train/n2.tar"), (whole, "whole.tar: class n2")):
        report = _converted(imagenet_items(source, names), tmp_path / f"out-{source.name}")
        assert report.samples == 4 and report.skipped == {"unreadable-file": 1}
        assert f"{tmp_path}/{shown} is not a tar" in report.summary()
    (tmp_path / "train" / "n1.tar").write_bytes(bad)
    with pytest.raises(ValueError, match=r"no class tar can be read, the first: \S+n1\.tar is not"):
        list(imagenet_items(tmp_path / "train", names))
    whole.write_bytes(bad)
    with pytest.raises(ValueError, match=r"whole\.tar is not a tar .*fetch it again"):
        list(imagenet_items(whole, names))


@pytest.mark.parametrize(
    "bad", [b"<html>", b"", b"PAR1" + bytes(40), b"PAR1" + b"\xff" * 40 + b"PAR1"]
)
def test_a_file_that_is_no_parquet_costs_itself(tmp_path: Path, bad: bytes) -> None:
    for name in ("a", "c"):
        table = pa.table({"content": [f"{name} {n}" for n in range(3)], "image": [image(1)] * 3})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "b.parquet").write_bytes(bad)
    for number, items in enumerate((text_items, image_items)):
        report = _converted(items([f"{tmp_path}/?.parquet"]), tmp_path / f"out{number}")
        assert report.samples == 6 and report.skipped == {"unreadable-file": 1}
        assert f"{tmp_path}/b.parquet: cannot be read as Parquet: " in report.summary()
        with pytest.raises(ValueError, match=r"nothing was converted .*b\.parquet: cannot be read"):
            _converted(items([f"{tmp_path}/b.parquet"]), tmp_path / f"none{number}")


def test_a_shard_that_is_none_costs_itself(tmp_path: Path) -> None:
    for name in ("a", "c"):
        write_shard(tmp_path / f"{name}.tar", [{"__key__": name, "jpg": image(1), "txt": name}])
    (tmp_path / "b.tar").write_bytes(b"<html>no such file</html>")

    def items(names: str) -> Iterator[Item]:
        return recaptioned_items([f"{tmp_path}/{name}.tar" for name in names], ExternalCaptions())

    report = _converted(items("abc"), tmp_path / "out")
    assert report.samples == 2 and report.skipped == {"unreadable-file": 1}
    assert f"{tmp_path}/b.tar is an HTML page" in report.summary()
    with pytest.raises(ValueError, match=r"nothing was converted .*b\.tar is an HTML page"):
        _converted(items("b"), tmp_path / "none")


DAMAGES = {
    "cut between members": lambda data: data[:3072],
    "cut in a header": lambda data: data[:3172],
    "a flipped header": lambda data: data[:3074] + b"\xff\xff" + data[3076:],
    "a negative size": lambda data: data[: 3072 + 124] + b"\xff" * 12 + data[3072 + 136 :],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_class_tar_keeps_what_is_intact(tmp_path: Path, damage: str) -> None:
    tars = _class_tars(tmp_path)
    assert 512 < len(image(1)) <= 1024, "a header and two blocks each"
    (tmp_path / "train" / "n1.tar").write_bytes(tars["n1.tar"])
    (tmp_path / "train" / "n2.tar").write_bytes(DAMAGES[damage](tars["n2.tar"]))
    (tmp_path / "train" / "._n2.tar").write_bytes(b"\0\5\x16\7")
    items = imagenet_items(tmp_path / "train", tmp_path / "names.txt")
    report = _converted(items, tmp_path / "out")
    cut = damage.startswith("cut")
    assert report.skipped == {"unreadable-part": 1} and report.samples == 4 + (2 if cut else 3)
    where = f"{tmp_path}/train/n2.tar, from byte 3072 on"
    assert report.examples == {"unreadable-part": where}


@pytest.mark.parametrize(
    ("damage", "whole_images", "parts"),
    [("cut", 4, 1), ("cut in a class", 6, 2), ("a flipped header", 8, 1)],
)
def test_a_broken_tar_of_class_tars_keeps_what_is_intact(
    tmp_path: Path, damage: str, whole_images: int, parts: int
) -> None:
    """The images of a class whose own header is damaged have no class; the classes around it are whole."""
    tars = _class_tars(tmp_path)
    (tmp_path / "names.txt").write_text(NAMES + "n3 shark\n")
    tars["n3.tar"] = tars["n1.tar"]
    data, second = tar_of(tars), 512 + len(tars["n1.tar"])
    damaged = {
        "cut": data[:second],
        "cut in a class": data[: second + 512 + 3072],
        "a flipped header": data[: second + 2] + b"\xff\xff" + data[second + 4 :],
    }
    whole = tmp_path / "whole.tar"
    whole.write_bytes(damaged[damage])
    report = _converted(imagenet_items(whole, tmp_path / "names.txt"), tmp_path / "out")
    assert report.samples == whole_images and report.skipped == {"unreadable-part": parts}
    if damage == "cut in a class":
        where = f"{whole}: class n2, from byte {second + 512 + 3072} on"
    else:
        where = f"{whole}, from byte {second} on"
    assert report.examples == {"unreadable-part": where}


@pytest.mark.parametrize("data", [NAMES.encode("utf-16"), b"n1 caf\xe9\n"])
def test_class_names_that_are_not_utf8_are_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"names\.txt: not UTF-8 \((UTF-16|line 1)\); save it as"):
        read_class_names(path)


def test_a_bad_text_in_parquet_costs_its_row(tmp_path: Path) -> None:
    data = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, data.buffers())
    parquet.write_table(pa.table({"content": strings}), tmp_path / "a.parquet")
    report = _converted(text_items([f"{tmp_path}/a.parquet"]), tmp_path / "out")
    assert report.skipped == {"not-utf8": 1}
    assert report.examples == {"not-utf8": f"{tmp_path}/a.parquet, row 1"}
    assert _texts(tmp_path / "out") == ["good", "fine"]


def test_images_of_any_kind_in_parquet_are_counted(tmp_path: Path) -> None:
    cells = [image(1), b"", None, b"\0" * 50, image(2)[:20]]
    table = pa.table({"image": cells, "text": ["a", "b", "c", "d", "e"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    report = _converted(image_items([f"{tmp_path}/a.parquet"], text="text"), tmp_path / "out")
    assert report.samples == 1 and report.skipped.total() == 4


def test_captions_of_a_folder_are_found_or_counted(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate("abcdefghi"):
        (folder / f"{name}.jpg").write_bytes(image(number))
    captions = {"a.txt": b"one", "b.TXT": b"two", "c.jpg.txt": b"three", "d.JPG.Caption": b"x"}
    captions |= {"e.txt": b" \n", "f.txt": BOM + b"six", "g.txt": b"caf\xe9"}
    captions |= {"a.caption": b"caf\xe9", "f.text": b"other", "h.txt": b"", "h.caption": b"eight"}
    captions |= {"i.text": "\u200b".encode(), "i.jpg.txt": b"nine"}
    for name, data in captions.items():
        (folder / name).write_bytes(data)
    report = _converted(folder_items(folder), tmp_path / "out")
    stored = files(tmp_path / "out")
    texts = {name[9]: data for name, data in stored.items() if name.endswith("txt")}
    first = {"0": b"one", "1": b"two", "2": b"three", "5": b"six", "7": b"eight", "8": b"nine"}
    assert texts == first
    assert report.skipped == {"not-utf8": 1} and report.notes == {"without a caption": 2}
    assert f"without a caption: 2, first {folder}/d.jpg" in report.summary()


def test_an_unexpected_error_of_one_input_is_counted(tmp_path: Path) -> None:
    def load() -> list[dict[str, Any]]:
        raise KeyError("odd")

    items = iter([Item("first", load), Item("second", lambda: [{"txt": "x"}])])
    report = _converted(items, tmp_path)
    assert report.skipped == {"unexpected-KeyError": 1} and report.samples == 1


# Whose first byte the system cannot read, as on a network disk that fails.
UNREADABLE = "/proc/self/mem"


@contextmanager
def _without_descriptors() -> Iterator[None]:
    """Opening any file fails inside."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_image_that_the_disk_does_not_give_at_the_moment_is_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    other = _entry('"y.jpg"')
    (tmp_path / "set.json").write_text("[" + ",".join([_entry(), other, _entry()]) + "]")
    (tmp_path / "images" / "x.jpg").write_bytes(image(1))
    image_path = tmp_path / "images" / "y.jpg"
    image_path.symlink_to(UNREADABLE)
    target = Target(out=tmp_path / "out", shard_size=1)
    with pytest.raises(OSError, match=r"Input/output error: '\S+/y\.jpg'; the same") as caught:
        convert(llava_items(tmp_path / "set.json", tmp_path / "images"), target)
    assert caught.value.filename == f"{tmp_path}/set.json, item 1"
    image_path.unlink()
    image_path.write_bytes(image(2))
    report = convert(llava_items(tmp_path / "set.json", tmp_path / "images"), target)
    assert (report.samples, report.kept, dict(report.skipped)) == (3, 1, {})


def test_lines_that_the_disk_does_not_give_at_the_moment_are_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.symlink_to(UNREADABLE)
    with pytest.raises(OSError, match="Input/output error") as caught:
        list(text_items([str(path)]))
    assert caught.value.filename == str(path)


def test_files_that_cannot_be_opened_at_the_moment_are_not_left_out(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"image": [image(1)]}), path)
    (item,) = image_items([path])
    with _without_descriptors():
        for work in (
            lambda: list(image_items([path])),
            lambda: list(folder_items(tmp_path)),
            item.load,
        ):
            with pytest.raises(OSError, match="Too many open files") as caught:
                work()
            assert caught.value.errno == errno.EMFILE
            assert caught.value.filename in (path, str(tmp_path))
    assert len(item.load()) == 1


def test_rows_that_the_disk_does_not_give_at_the_moment_are_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **options: Any) -> Iterator[Any]:
        raise OSError(errno.EIO, "Input/output error")
        yield

    parquet.write_table(pa.table({"image": [image(1)]}), tmp_path / "a.parquet")
    (item,) = image_items([f"{tmp_path}/a.parquet"])
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", failing)
    with pytest.raises(OSError, match="Input/output error"):
        item.load()
