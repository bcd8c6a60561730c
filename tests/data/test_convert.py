"""Shards from inputs, whatever they are: arithmetic, resumption, bad inputs, images kept as they are."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from showo_data.cli import main_shards
from showo_data.convert import Item, Target, convert
from showo_data.convert.images import folder_items, image_member
from showo_data.convert.items import Members, find_files
from showo_data.members import BadSampleError
from showo_data.shards import index_path
from tests.data.converting import files, image, samples, snapshot


class Inputs:
    """Numbered texts, some bad; remembers which were read."""

    def __init__(self, count: int, bad: tuple[int, ...] = (), stop: int | None = None) -> None:
        self.count, self.bad, self.stop = count, bad, stop
        self.read: list[int] = []

    def __iter__(self) -> Iterator[Item]:
        for number in range(self.count):
            yield Item(f"input {number}", lambda number=number: self.load(number))  # type: ignore[misc]

    def load(self, number: int) -> list[Members]:
        if number == self.stop:
            raise KeyboardInterrupt
        self.read.append(number)
        if number in self.bad:
            raise BadSampleError("odd" if number % 2 else "even")
        return [{"txt": f"text {number}"}]


def test_a_shard_holds_the_inputs_from_its_number_on(tmp_path: Path) -> None:
    report = convert(Inputs(25, bad=(3, 4, 11)), Target(out=tmp_path, shard_size=10))
    assert (report.shards, report.inputs, report.samples) == (3, 25, 22)
    assert report.skipped == {"odd": 2, "even": 1}
    assert report.examples == {"odd": "input 3", "even": "input 4"}
    good = [n for n in range(25) if n not in (3, 4, 11)]
    assert files(tmp_path) == {f"{n:010d}.txt": f"text {n}".encode() for n in good}
    assert {s.text for s in samples(tmp_path, "text").values()} == {f"text {n}" for n in good}
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == [
        f"train-00000{i}.tar" for i in range(3)
    ]


def test_parts_side_by_side_give_the_shards_of_one_command(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    convert(Inputs(45, bad=(3, 14)), Target(out=whole, shard_size=10))
    inputs = [Inputs(45, bad=(3, 14)) for _ in range(3)]
    reports = [
        convert(own, Target(out=parts, shard_size=10, part=(number, 3)))
        for number, own in enumerate(inputs)
    ]
    written = [{name: data for name, (data, _) in snapshot(f).items()} for f in (parts, whole)]
    assert written[0] == written[1]
    assert [report.shards for report in reports] == [2, 2, 1]
    assert {report.all_shards for report in reports} == {5}
    assert sorted(n for own in inputs for n in own.read) == list(range(45))
    # One command after them finds everything done; a part that is run again does as well.
    for part in ((0, 1), (1, 3), (1, 2)):
        again = Inputs(45, bad=(3, 14))
        assert convert(again, Target(out=parts, shard_size=10, part=part)).shards
        assert again.read == []


def test_a_part_leaves_what_another_one_is_writing(tmp_path: Path) -> None:
    other = tmp_path / ".train-000001.tar.1234.partial"
    other.write_bytes(b"half a shard")
    convert(Inputs(20), Target(out=tmp_path, shard_size=10, part=(0, 2)))
    assert other.exists()
    convert(Inputs(20), Target(out=tmp_path, shard_size=10, part=(1, 2)))
    assert not other.exists()


def test_parts_with_other_settings_do_not_mix(tmp_path: Path) -> None:
    convert(Inputs(20), Target(out=tmp_path, shard_size=10, part=(0, 2)))
    with pytest.raises(ValueError, match=r"part-0-of-2.*other settings"):
        convert(Inputs(20), Target(out=tmp_path, shard_size=5, part=(1, 2)))
    with pytest.raises(ValueError, match="--part must be I/N with 0 ≤ I < N, not 2/2"):
        Target(out=tmp_path, part=(2, 2))


def test_more_parts_than_shards(tmp_path: Path) -> None:
    report = convert(Inputs(5), Target(out=tmp_path, shard_size=10, part=(1, 2)))
    assert (report.shards, report.all_shards) == (0, 1)


def test_the_summary_names_reasons_and_first_inputs(tmp_path: Path) -> None:
    report = convert(Inputs(12, bad=(3, 5)), Target(out=tmp_path, shard_size=10))
    assert report.summary() == "2 shards, 10 samples of 12 inputs\nskipped 2: odd, first input 3"
    again = convert(Inputs(12, bad=(3, 5)), Target(out=tmp_path, shard_size=10))
    assert again.summary().startswith(
        "2 shards (2 from before), 10 samples of 12 inputs\nskipped 2"
    )


@pytest.mark.parametrize("stop", [0, 7, 10, 19, 24])
def test_a_stopped_conversion_resumes_after_its_last_finished_shard(
    tmp_path: Path, stop: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    convert(Inputs(25, bad=(8,)), Target(out=whole, shard_size=10))
    with pytest.raises(KeyboardInterrupt):
        convert(Inputs(25, bad=(8,), stop=stop), Target(out=parts, shard_size=10))
    assert len(list(parts.glob("*.tar"))) == stop // 10
    assert not list(parts.glob(".*")), "no unfinished file is left"
    rest = Inputs(25, bad=(8,))
    report = convert(rest, Target(out=parts, shard_size=10))
    assert rest.read == list(range(stop // 10 * 10, 25)) and report.kept == stop // 10
    assert files(parts) == files(whole) and report.skipped == {"even": 1}
    assert {n: d for n, (d, _) in snapshot(parts).items() if n.endswith(".tar")} == {
        n: d for n, (d, _) in snapshot(whole).items() if n.endswith(".tar")
    }


def test_shards_after_a_kill_equal_those_without(tmp_path: Path) -> None:
    source, killed, whole = tmp_path / "source", tmp_path / "killed", tmp_path / "whole"
    source.mkdir()
    for number in range(600):
        (source / f"{number:04d}.jpg").write_bytes(image(number % 50))
    command = ["shards", "from-folder", str(source), "--shard-size", "10", "--out"]
    process = subprocess.Popen([sys.executable, "-m", "showo_dist.cli", *command, str(killed)])
    try:
        deadline = time.monotonic() + 60
        while not list(killed.glob("*.tar")) and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert 0 < len(list(killed.glob("*.tar"))) < 60
    for out in (killed, whole):
        assert main_shards([*command[1:], str(out)]) == 0
    assert not list(killed.glob(".*"))
    assert {p.name: p.read_bytes() for p in killed.glob("*.tar*")} == {
        p.name: p.read_bytes() for p in whole.glob("*.tar*")
    }


def test_a_finished_conversion_is_kept(tmp_path: Path) -> None:
    convert(Inputs(25), Target(out=tmp_path, shard_size=10))
    before, again = snapshot(tmp_path), Inputs(25)
    convert(again, Target(out=tmp_path, shard_size=10))
    assert again.read == [] and snapshot(tmp_path) == before


def test_lost_and_damaged_shards_are_made_again(tmp_path: Path) -> None:
    convert(Inputs(45), Target(out=tmp_path, shard_size=10))
    before = {name: data for name, (data, _) in snapshot(tmp_path).items()}
    (tmp_path / "train-000001.tar").unlink()
    index_path(str(tmp_path / "train-000002.tar")).unlink()
    (tmp_path / "train-000003.tar").write_bytes(before["train-000003.tar"][:3000])
    again = Inputs(45)
    convert(again, Target(out=tmp_path, shard_size=10))
    assert again.read == list(range(10, 40))
    assert {name: data for name, (data, _) in snapshot(tmp_path).items()} == before


def test_a_larger_limit_resumes_and_fills_the_last_shard(tmp_path: Path) -> None:
    convert(Inputs(45), Target(out=tmp_path, shard_size=10, limit=13))
    assert len(files(tmp_path)) == 13
    again = Inputs(45)
    report = convert(again, Target(out=tmp_path, shard_size=10, limit=31))
    assert again.read == list(range(10, 31)) and report.samples == len(files(tmp_path)) == 31


def test_a_line_of_the_journal_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    target = Target(out=tmp_path, shard_size=10)
    convert(Inputs(25), target)
    lines = target.journal.read_bytes()
    target.journal.write_bytes(lines[:-9])
    again = Inputs(25)
    convert(again, target)
    assert again.read == list(range(20, 25))
    convert(again, target)
    assert again.read == list(range(20, 25)), "the shard made again is in the journal"


def test_conversions_of_other_settings_do_not_mix(tmp_path: Path) -> None:
    convert(Inputs(5), Target(out=tmp_path, settings={"source": "a"}))
    message = r"train\.convert\.jsonl belongs .*, source 'a', not 'b': name .*--prefix"
    with pytest.raises(ValueError, match=message):
        convert(Inputs(5), Target(out=tmp_path, settings={"source": "b"}))
    convert(Inputs(5), Target(out=tmp_path, settings={"source": "b"}, prefix="other"))


def test_settings_may_change_while_nothing_is_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(Inputs(5, stop=0), Target(out=tmp_path, settings={"source": "a"}))
    assert convert(Inputs(5), Target(out=tmp_path, settings={"source": "b"})).samples == 5


def test_nothing_converted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing was converted .*skipped 1: even, first input 0"):
        convert(Inputs(1, bad=(0,)), Target(out=tmp_path))


def test_inputs_that_cannot_begin_leave_nothing_behind(tmp_path: Path) -> None:
    def items() -> Iterator[Item]:
        raise FileNotFoundError("no folder")
        yield

    with pytest.raises(FileNotFoundError):
        convert(items(), Target(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "--shard-size must be at least 1, not 0"),
        ({"limit": 0}, "--limit must be at least 1, not 0"),
        ({"prefix": "a/b"}, "--prefix must be a plain name"),
    ],
)
def test_impossible_targets_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(out=tmp_path, **options)


def test_only_one_shard_of_inputs_is_held(tmp_path: Path) -> None:
    """Inputs are asked for shard by shard, not all at once."""
    seen: list[int] = []

    def items() -> Iterator[Item]:
        for number in range(30):
            seen.append(number)
            yield Item(str(number), lambda: [{"txt": "x"}])

    lead: list[int] = []
    convert(items(), Target(out=tmp_path, shard_size=10), lambda report: lead.append(len(seen)))
    assert lead == [10, 20, 30]


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_images_are_copied_byte_for_byte(kind: str, extension: str) -> None:
    data = image(5, kind)
    assert image_member(data) == {extension: data}
    assert image_member(data, max_side=12) == {extension: data}


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_become_png_without_loss(kind: str) -> None:
    data = image(5, kind)
    ((extension, stored),) = image_member(data).items()
    assert extension == "png"
    with Image.open(io.BytesIO(stored)) as after, Image.open(io.BytesIO(data)) as before:
        assert after.format == "PNG" and after.tobytes() == before.convert("RGB").tobytes()


def test_max_side_makes_larger_images_smaller_and_turns_them_upright() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (60, 30), "red").save(stream, "PNG", exif=exif)
    ((extension, stored),) = image_member(stream.getvalue(), max_side=20).items()
    with Image.open(io.BytesIO(stored)) as after:
        assert (extension, after.format, after.size) == ("jpg", "JPEG", (10, 20))


def _reason(data: bytes) -> str:
    with pytest.raises(BadSampleError) as caught:
        image_member(data)
    return str(caught.value)


def test_bytes_that_are_no_image_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _reason(b"") == _reason(b"not an image") == "broken-image"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert _reason(image(1)) == "image-too-large"


def test_files_are_found_by_path_brace_and_wildcard(tmp_path: Path) -> None:
    for name in ("b1", "b0", "c"):
        (tmp_path / name).touch()
    (tmp_path / "d" / "e").mkdir(parents=True)
    for name in ("d/e/a.x", "d/a.x", "a.x"):
        (tmp_path / name).touch()
    names = find_files([f"{tmp_path}/{name}" for name in ("c", "b{1,0}", "**/*.x")])
    found = [str(Path(name).relative_to(tmp_path)) for name in names]
    assert found == ["c", "b1", "b0", "a.x", "d/a.x", "d/e/a.x"]
    for pattern in ("gone", "g*"):
        with pytest.raises(FileNotFoundError, match="no file"):
            find_files([f"{tmp_path}/{pattern}"])


@pytest.mark.parametrize("patterns", [("a*", "{b,ab}"), ("{ab,b,ab}",), ("ab", "../x/ab")])
def test_a_file_that_two_patterns_name_is_refused(tmp_path: Path, patterns: tuple[str]) -> None:
    """Else its samples would be trained on twice as often."""
    folder = tmp_path / "x"
    folder.mkdir()
    for name in ("aa", "ab", "b"):
        (folder / name).touch()
    with pytest.raises(ValueError, match=r"/x/ab: named twice"):
        find_files([f"{folder}/{pattern}" for pattern in patterns])


def test_the_journal_says_what_each_shard_holds(tmp_path: Path) -> None:
    target = Target(out=tmp_path, shard_size=10, settings={"source": "x"})
    convert(Inputs(12, bad=(11,)), target)
    settings, _, last = (json.loads(line) for line in target.journal.read_text().splitlines())
    assert settings == {"source": "x", "shard_size": 10}
    assert last == {
        "shard": "train-000001.tar",
        "content": last["content"],
        "inputs": 2,
        "samples": 1,
        "skipped": {"odd": 1},
        "examples": {"odd": "input 11"},
    }


def test_inputs_that_changed_between_two_calls_are_refused(tmp_path: Path) -> None:
    """A file that comes first in order would give one of a finished shard twice and leave out another."""
    source = tmp_path / "images"
    source.mkdir()
    for name in "abcd":
        (source / f"{name}.jpg").write_bytes(image(ord(name)))
    command = ["from-folder", str(source), "--out", str(tmp_path / "out"), "--shard-size", "2"]
    assert main_shards(command) == 0
    (source / "e.jpg").write_bytes(image(1))
    assert main_shards(command) == 0, "what comes last changes no finished shard"
    (source / "0.jpg").write_bytes(image(2))
    with pytest.raises(ValueError, match=r"train-000000\.tar: was made of other inputs .*0\.jpg"):
        main_shards(command)


def test_the_journal_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It has the names of the inputs alone, no notes, and no digest of a side file."""
    target = Target(out=tmp_path, settings={"source": "x"})
    convert(Inputs(3), target)
    settings, record = map(json.loads, target.journal.read_text().splitlines())
    del record["content"]
    record["names"] = hashlib.sha256(b"input 0\ninput 1\ninput 2").hexdigest()[:16]
    record |= {"uncaptioned": 2, "first_uncaptioned": "input 1"}
    target.journal.write_text(f"{json.dumps(settings)}\n{json.dumps(record)}\n")
    again = Inputs(3)
    now = replace(target, settings={"source": "x", "names_sha256": "0" * 64})
    assert "without a caption: 2, first input 1" in convert(again, now).summary()
    assert again.read == []
    with pytest.raises(ValueError, match="of other inputs"):
        convert([Item(f"other {n}", list) for n in range(3)], now)


def _line_conversions(folder: Path, texts: str) -> Iterator[tuple[str, list[str]]]:
    """Write the ``texts`` as inputs that have numbers for names; yields each file and its conversion."""
    (folder / "x.jpg").write_bytes(image(1))
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": ""}]
    entries = [
        {"image": "x.jpg", "conversations": [turns[0], {**turns[1], "value": text}]}
        for text in texts
    ]
    lines = [json.dumps({"content": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(lines))
    yield "a.jsonl, line 1", ["from-text", f"{folder}/a.jsonl"]
    (folder / "a.json").write_text(json.dumps(entries))
    yield "a.json, item 0", ["from-llava", f"{folder}/a.json", "--images", str(folder)]


def test_lines_that_were_added_between_others_are_refused(tmp_path: Path) -> None:
    """Their names are numbers, which stay the same: one would be converted twice, and one not at all."""

    def convert_all(texts: str) -> None:
        for name, command in _line_conversions(tmp_path, texts):
            out = ["--out", f"{tmp_path}/{command[0]}", "--shard-size", "2"]
            if texts[0] == "1":
                assert main_shards([*command, *out]) == 0
                continue
            with pytest.raises(ValueError, match=f"of other inputs than .*, the first .*/{name}"):
                main_shards([*command, *out])

    convert_all("12345")
    convert_all("123456789")  # what is appended changes no finished shard
    texts = [sample.text for _, sample in sorted(samples(tmp_path / "from-text", "text").items())]
    assert texts == list("123456789")
    convert_all("0123456789")


def test_a_parquet_file_of_another_size_is_refused(tmp_path: Path) -> None:
    def write(name: str, *texts: str) -> None:
        parquet.write_table(pa.table({"content": texts}), tmp_path / f"{name}.parquet")

    command = ["from-text", f"{tmp_path}/*.parquet", "--out", f"{tmp_path}/out"]
    write("a", "one", "two", "three")
    assert main_shards([*command, "--shard-size", "2"]) == 0
    write("b", "four")
    assert main_shards([*command, "--shard-size", "2"]) == 0, "a file more, behind the others"
    write("a", "zero", "one and two", "three")
    with pytest.raises(ValueError, match=r"of other inputs .*a\.parquet, row 0"):
        main_shards([*command, "--shard-size", "2"])


def test_fewer_inputs_than_before_are_refused(tmp_path: Path) -> None:
    """Shards of both would be one set."""
    convert(Inputs(45), Target(out=tmp_path, shard_size=10))
    before = snapshot(tmp_path)
    for limit, shard in ((37, "000003"), (20, "000002")):
        with pytest.raises(ValueError, match=rf"train-{shard}\.tar: was made of .*--limit"):
            convert(Inputs(45), Target(out=tmp_path, shard_size=10, limit=limit))
    with pytest.raises(ValueError, match=r"000004\.tar: was made of 5 inputs, of which 4 are"):
        convert(Inputs(44), Target(out=tmp_path, shard_size=10))
    assert snapshot(tmp_path) == before


def test_a_folder_with_several_names_is_visited_once(tmp_path: Path) -> None:
    source, apart = tmp_path / "images", tmp_path / "apart"
    for folder in (source / "a", source / "c", apart):
        folder.mkdir(parents=True)
        (folder / "x.jpg").write_bytes(image(1))
    (tmp_path / "beside.jpg").write_bytes(image(1))
    (source / "b").symlink_to(apart)
    (source / "a" / "round").symlink_to(source)
    (source / "a" / "above").symlink_to(tmp_path)
    (source / "a" / "other").symlink_to(source / "c")
    (source / "c" / "other").symlink_to(source / "a")
    names = [item.name for item in folder_items(source) if isinstance(item, Item)]
    assert names == [f"{source}/{name}/x.jpg" for name in ("a", "a/other", "b")]


def test_a_folder_that_cannot_be_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(image(1))
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith(("/b", "/c")):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = convert(folder_items(tmp_path), Target(out=tmp_path / "out"))
    assert report.samples == 1 and report.skipped == {"unreadable-folder": 2}
    assert report.examples == {
        "unreadable-folder": f"{tmp_path}/b",
        "without a caption": f"{tmp_path}/a/x.jpg",
    }


def test_files_of_other_kinds_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    kinds = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.avif": "AVIF"}
    for name, kind in kinds.items():
        (source / name).write_bytes(image(1, kind))
        (source / name).with_suffix(".txt").write_text("x")
    for name in ("0\udcff.json", "d.heic", "._d.heic"):
        (source / name).write_text("{}")
    command = Target(out=tmp_path / "out", shard_size=2)
    for _ in range(2):  # also where all shards are from before
        report = convert(folder_items(source), command)
        assert report.samples == report.inputs == 3
        assert f"neither image nor caption: 2, first {source}/0\\udcff.json" in report.summary()
