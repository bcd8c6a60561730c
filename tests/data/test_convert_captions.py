"""Captions outside the shards: read in training, or put into shards."""

import json
from collections import Counter
from pathlib import Path

import pytest

from showo_data import FlowSpec, Sample, Skipped, Source
from showo_data.captions import ExternalCaptions, short_or_long, without_openings
from showo_data.cli import main_shards
from showo_data.shards import write_shard
from showo_data.shards.outages import OUTAGES
from tests.data.converting import TRANSFORM, files, image, samples, snapshot
from tests.data.server import serving

LONG = "The image depicts a red cube. In the background, a cat sleeps."
SHORT, REST = "a red cube", "a red cube. In the background, a cat sleeps."


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _shard(path: Path, keys: list[str]) -> str:
    stored = [
        {"__key__": key, "jpg": image(number), "txt": f"own {key}"}
        for number, key in enumerate(keys)
    ]
    write_shard(path, stored)
    return str(path)


def _read(shard: str, captions: ExternalCaptions, epochs: int = 1) -> list[Sample | Skipped]:
    spec = FlowSpec(
        flow="f", kind="caption", urls=(shard,), batch=1, transform=TRANSFORM, captions=captions
    )
    source = Source(spec)
    return [source[position] for position in range(epochs * len(source))]


def _texts(items: list[Sample | Skipped]) -> dict[str, str | None]:
    return {item.key: item.text if isinstance(item, Sample) else item.reason for item in items}


def test_openings_are_removed_anywhere() -> None:
    assert without_openings("The image depicts a cat") == "a cat"
    assert without_openings("In this image, we see a cat. This is nice.") == "a cat. nice."
    assert without_openings("In this image, a cat") == "a cat"
    assert without_openings("A cat in this image, asleep") == "A cat in this image, asleep"
    assert short_or_long("This is a cat. It sleeps.") == ("a cat", "a cat. It sleeps.")
    assert short_or_long("one sentence") == ("one sentence", "one sentence")
    assert short_or_long(". only later") == (". only later",)
    assert short_or_long("") == short_or_long("This is ") == ()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Shards of three sets with captions beside them, one missing in each; and shards of another set."""
    _shard(tmp_path / "sam" / "0.tar", ["SA1B/sa_1", "SA1B/sa_2"])
    _write(tmp_path / "sa1b" / "sa_1.txt", LONG + "\nsecond line\n")
    _shard(tmp_path / "laion" / "00007.x.tar", ["000", "001"])
    _write(tmp_path / "laion-captions" / "00007" / "000.caption", LONG)
    _shard(tmp_path / "cc12m-0003.tar", ["a/b/1", "a/b/2"])
    _write(tmp_path / "cc12m-captions" / "cc12m-0003" / "1.caption", LONG)
    _shard(tmp_path / "other" / "0.tar", ["k1", "k2"])
    return tmp_path


def _outside(world: Path, variants: bool) -> ExternalCaptions:
    return ExternalCaptions(
        sa1b=f"{world}/sa1b",
        laion12m=f"{world}/laion-captions",
        cc12m=f"{world}/cc12m-captions",
        variants=variants,
    )


SETS = {
    "sam/0.tar": ("SA1B/sa_1", "SA1B/sa_2"),
    "laion/00007.x.tar": ("000", "001"),
    "cc12m-0003.tar": ("a/b/1", "a/b/2"),
}


@pytest.mark.parametrize("name", SETS)
def test_the_caption_of_each_set_is_found_by_its_names(world: Path, name: str) -> None:
    present, missing = SETS[name]
    items = _read(f"{world}/{name}", _outside(world, variants=False))
    assert _texts(items) == {present: LONG, missing: "no-caption"}


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("laion-bucket/cc12m/00007.tar", "cc12m"),
        ("cc12m/laion/00007.tar", "laion"),
        ("cc12m/laion-00007.tar", "laion"),
    ],
)
def test_of_a_path_with_the_words_of_two_sets_the_last_one_counts(
    tmp_path: Path, name: str, which: str
) -> None:
    shard = _shard(tmp_path / name, ["000"])
    for folder in ("cc12m", "laion"):
        _write(tmp_path / f"of-{folder}" / Path(name).stem / "000.caption", f"of {folder}")
    outside = ExternalCaptions(laion12m=f"{tmp_path}/of-laion", cc12m=f"{tmp_path}/of-cc12m")
    assert _texts(_read(shard, outside)) == {"000": f"of {which}"}


def test_samples_of_no_set_have_their_own_text(world: Path) -> None:
    items = _read(f"{world}/other/0.tar", _outside(world, variants=True))
    assert _texts(items) == {"k1": "own k1", "k2": "own k2"}
    assert _texts(_read(f"{world}/sam/0.tar", ExternalCaptions(cc12m="x"))) == {
        "SA1B/sa_1": "own SA1B/sa_1",
        "SA1B/sa_2": "own SA1B/sa_2",
    }


def test_short_or_long_is_drawn_by_position(world: Path) -> None:
    def drawn() -> list[str | None]:
        items = _read(f"{world}/sam/0.tar", _outside(world, variants=True), epochs=200)
        return [item.text for item in items if isinstance(item, Sample)]

    texts = drawn()
    assert texts == drawn()
    counts = Counter(texts)
    assert set(counts) == {SHORT, REST} and len(texts) == 200
    assert 70 <= counts[SHORT] <= 130, "half of them, within four deviations"


def test_empty_and_undecodable_caption_files_count_as_missing(world: Path) -> None:
    (world / "sa1b" / "sa_1.txt").write_bytes(b"\xff\xfe")
    (world / "sa1b" / "sa_2.txt").write_text("\nsecond line")
    items = _read(f"{world}/sam/0.tar", _outside(world, variants=False))
    assert set(_texts(items).values()) == {"no-caption"}


def _convert(world: Path, flow: str, out: Path, *more: str) -> None:
    urls = [f"{world}/{name}" for name in (*SETS, "other/0.tar")]
    outside = {"sa1b": "sa1b", "laion12m": "laion-captions", "cc12m": "cc12m-captions"}
    options = [part for name, path in outside.items() for part in (f"--{name}", f"{world}/{path}")]
    assert (
        main_shards(["from-captions", *urls, *options, "--for", flow, "--out", str(out), *more])
        == 0
    )


def test_converted_for_understanding(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _convert(world, "mmu", out)
    texts = [sample.text for _, sample in sorted(samples(out, "caption").items())]
    assert texts == [LONG, LONG, LONG, "own k1", "own k2"]
    images = [data for name, data in sorted(files(out).items()) if name.endswith("jpg")]
    assert images == [image(0), image(0), image(0), image(0), image(1)]


def test_converted_for_images_from_text(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _convert(world, "t2i", out)
    assert "skipped 3: no-caption, first" in capsys.readouterr().out
    texts: set[str | None] = set()
    for seed in range(8):
        texts |= {sample.text for sample in samples(out, "caption", seed=seed).values()}
    assert texts == {SHORT, REST, "own k1", "own k2"}


def test_journeydb_captions_are_drawn_from_a_list(world: Path, tmp_path: Path) -> None:
    book = tmp_path / "train_journeydb_anno.json"
    book.write_text(json.dumps({"k1": ["one", "two", "three"], "elsewhere": ["x"]}))
    out = tmp_path / "out"
    command = ["from-captions", f"{world}/other/0.tar", "--journeydb", str(book), "--for", "t2i"]
    assert main_shards([*command, "--out", str(out)]) == 0
    assert json.loads(files(out)["0000000000.json"]) == {"captions": ["one", "two", "three"]}
    texts = {
        sample.text for seed in range(12) for sample in samples(out, "caption", seed=seed).values()
    }
    assert texts == {"one", "two", "three", "own k2"}


@pytest.mark.parametrize("text", ["[]", "{", '{"k1": 3}', '{"k1": [3]}'])
def test_other_files_than_journeydbs_are_refused(world: Path, tmp_path: Path, text: str) -> None:
    book = tmp_path / "book.json"
    book.write_text(text)
    command = ["from-captions", f"{world}/other/0.tar", "--journeydb", str(book), "--for", "t2i"]
    with pytest.raises(ValueError, match=r"book\.json: expected JSON \{key: \[caption, \.\.\.\]\}"):
        main_shards([*command, "--out", str(tmp_path / "out")])


def test_captions_that_no_shard_can_have_are_refused(world: Path) -> None:
    """Else the shards would be written with their own texts, without a word."""
    shard = f"{world}/other/0.tar"
    command = ["from-captions", shard, "--for", "mmu", "--out", f"{world}/out"]
    with pytest.raises(
        ValueError, match=r"--laion12m .*: its shards are known by 'laion' in their"
    ):
        main_shards([*command, "--laion12m", f"{world}/laion-captions"])
    with pytest.raises(ValueError, match=r"--sa1b .*gone: no such folder"):
        main_shards([*command, "--sa1b", f"{world}/gone"])


def test_captions_of_other_keys_are_refused(world: Path) -> None:
    """Else the shards would be written with their own texts, without a word."""
    book = world / "book.json"
    book.write_text('{"000/k1.jpg": ["one"]}')
    command = ["from-captions", f"{world}/other/0.tar", "--for", "mmu", "--out", f"{world}/out"]
    message = r"other/0\.tar: none of its keys has captions, its first is 'k1', the first of "
    with pytest.raises(ValueError, match=message + r"\S+ \S+book\.json is '000/k1\.jpg': give a"):
        main_shards([*command, "--journeydb", str(book)])
    with pytest.raises(ValueError, match=r"its first is 'k1', those of --sa1b \S+ contain 'SA1B'"):
        main_shards([*command, "--sa1b", f"{world}/sa1b"])


def test_own_texts_that_are_kept_are_counted(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book, out = world / "book.json", world / "out"
    book.write_text('{"./k1": ["one"], "elsewhere": ["x"]}')
    shard = _shard(world / "dots.tar", ["./k1", "./k2", "./k3"])
    command = ["from-captions", shard, "--journeydb", str(book), "--for", "mmu", "--out", str(out)]
    for _ in range(2):
        assert main_shards(command) == 0
        assert f"own text kept: 2, first {shard}, 'k2'" in capsys.readouterr().out
    assert {text for text in files(out).values() if b"JFIF" not in text} == {
        b"one",
        b"own ./k2",
        b"own ./k3",
    }
    book.write_text('{"./k1": ["two"]}')
    with pytest.raises(ValueError, match="with other settings, journeydb_sha256"):
        main_shards(command)


def test_captions_for_another_version_of_a_shard_are_refused(world: Path) -> None:
    command = ["from-captions", f"{world}/other/0.tar", "--for", "mmu", "--out", f"{world}/out"]
    assert main_shards(command) == 0
    _shard(world / "other" / "0.tar", ["k0", "k1"])
    with pytest.raises(ValueError, match=r"of other inputs .*other/0\.tar, sample 0"):
        main_shards(command)


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("fault", [503, "lost", "cut", 404])
def test_a_store_that_fails_for_a_while_costs_no_sample(tmp_path: Path, fault: int | str) -> None:
    """The shards that were being read stay unwritten, and the same command writes them later."""
    for number in range(3):
        _shard(tmp_path / f"{number}.tar", [f"{number}{key}" for key in "abcde"])
    out = tmp_path / "out"
    with serving(tmp_path) as server:
        access = [
            f"{server.url}/{{0..2}}.tar",
            "--cache-dir",
            f"{tmp_path}/cache",
            "--retries",
            "0",
        ]
        assert main_shards(["index", *access]) == 0
        command = ["from-captions", *access, "--for", "mmu", "--out", str(out), "--shard-size", "5"]
        assert main_shards([*command, "--limit", "5"]) == 0
        before = snapshot(out)
        server.faults = lambda path, _: fault if path == "/1.tar" else None
        with pytest.raises(OSError, match=r"1\.tar: .*; the same command again") as caught:
            main_shards(command)
        assert caught.value.filename == f"{server.url}/1.tar, sample 0"
        assert snapshot(out) == before and not list(out.glob(".*"))
        server.faults = lambda *_: None
        OUTAGES.clear()  # as in a new process
        assert main_shards(command) == 0
    assert len(samples(out, "caption")) == 15
