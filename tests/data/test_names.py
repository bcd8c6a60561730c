"""What is given in place of shards is refused in one line with the pattern or command to write."""

import time
from pathlib import Path

import pytest

from showo_data.convert.items import find_files
from showo_data.shards.names import expand
from showo_dist.config import load
from showo_dist.training.setup import check_data_paths

PARAMS = "dataset.params.train_t2i_shards_path_or_url"


def _refusals(pattern: str) -> list[str]:
    """The message where the commands read shards, and before training."""
    with pytest.raises(ValueError) as commands:
        expand(pattern)
    config = load(["training.batch_size_t2i=1", f"{PARAMS}={pattern}"], check=False)
    with pytest.raises(ValueError) as training:
        check_data_paths(config)
    messages = [str(commands.value), str(training.value)]
    assert not any("\n" in message for message in messages)
    return messages


def _shards(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize("end", ["", "/", "/*.tar", "/tr?in-*.tar", "/train-[0-9]*.tar"])
def test_a_folder_and_a_wildcard_give_the_pattern(tmp_path: Path, end: str) -> None:
    _shards(tmp_path, *(f"train-{number:04d}.tar" for number in range(8, 12)), "._train-0008.tar")
    for message in _refusals(f"{tmp_path}{end}"):
        assert f"write '{tmp_path}/train-{{0008..0011}}.tar'" in message
    assert len(expand(f"{tmp_path}/train-{{0008..0011}}.tar")) == 4


@pytest.mark.parametrize("names", [("0.tar", "2.tar"), ("a-1.tar", "b-2.tar"), ("x.tar", "1.tar")])
def test_shards_without_a_common_pattern_are_a_list(tmp_path: Path, names: tuple[str, ...]) -> None:
    _shards(tmp_path, *names)
    for message in _refusals(f"{tmp_path}/*.tar"):
        assert "write its 2 shards as a list, " in message and str(tmp_path / min(names)) in message


def test_a_wildcard_without_files_and_a_folder_of_images(tmp_path: Path) -> None:
    for message in _refusals(f"{tmp_path}/*.tar"):
        assert "nothing matches it; name the shards by a pattern such as" in message
    _shards(tmp_path, "x.jpg")
    for message in _refusals(str(tmp_path)):
        assert f"`showo-dist shards from-folder {tmp_path} --out " in message


@pytest.mark.parametrize("pattern", ["a.tar::b.tar", "s3://b/{0..3}.tar::s3://b/4.tar"])
def test_shards_joined_by_colons_are_a_list(pattern: str) -> None:
    for message in _refusals(pattern):
        assert "write several shards as a list: '" in message


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.jsonl", "from-text a.jsonl --out"),
        ("x{0..999999999}.jsonl.gz", "from-text 'x{0..999999999}.jsonl.gz' --out"),
        ("a.json", "from-llava a.json --images FOLDER --out"),
        ("A.PARQUET", "from-parquet A.PARQUET"),
        ("a.tar.gz", "unpack them with gunzip"),
        ("a.tgz", "unpack them with gunzip"),
        ("a.tar.zst", "unzstd"),
        ("a.zip", "unpack a.zip"),
        ("a.csv", "make a.csv Parquet"),
        ("a.jpg", "from-folder FOLDER"),
    ],
)
def test_files_of_other_kinds_give_the_command(name: str, advice: str) -> None:
    for message in _refusals(name):
        assert advice in message


@pytest.mark.parametrize(
    "pattern",
    [
        "x-{0..99999999}-{0..99999999}.tar",
        "{00000000..99999999}.tar",
        "{a..z}" * 9 + ".tar",
        "{x,y,z,w}" * 40 + ".tar",
        "s3://bucket/{0..9}{0..99999999..2}.tar",
    ],
)
def test_braces_of_too_many_names_are_not_expanded(pattern: str) -> None:
    started = time.monotonic()
    for expanded in (expand, lambda text: find_files([text])):
        with pytest.raises(ValueError, match=r"its braces name more than 1,000,000 files"):
            expanded(pattern)
    assert time.monotonic() - started < 1


def test_a_shard_that_one_source_names_twice_is_refused(tmp_path: Path) -> None:
    """Overlapping patterns would read it twice per epoch."""
    _shards(tmp_path, "a-0.tar", "a-1.tar", "a-2.tar")
    patterns = [f"{tmp_path}/a-{{0..1}}.tar", f"{tmp_path}/a-{{1..2}}.tar"]
    with pytest.raises(ValueError) as refusal:
        expand(patterns)
    message = str(refusal.value)
    assert message.startswith(f"shard '{tmp_path}/a-1.tar' is named twice by {patterns[0]}, ")
    assert "\n" not in message
    with pytest.raises(ValueError, match=r"a-0\.tar' is named twice"):
        expand([f"{tmp_path}/a-0.tar", f"{tmp_path}/../{tmp_path.name}/a-0.tar"])
    with pytest.raises(ValueError, match=r"b\.tar' is named twice"):
        expand("https://host/{b,c,b}.tar")


def test_sound_names_are_taken(tmp_path: Path) -> None:
    _shards(tmp_path, "a::b.tar", "c[0].tar", "d", "e.0")
    names = [f"{tmp_path}/{name}" for name in ("a::b.tar", "c[0].tar", "d", "e.0")]
    names += ["http://[::1]:80/{0..1}.tar", "https://host/a.tar?key=1"]
    assert len(expand(names)) == 7
