"""The commands: the mini world written once, shards indexed, verified and shown."""

import json
from pathlib import Path

import pytest
from PIL import Image

from showo_data.cli import main_mini, main_shards
from showo_data.shards import index_path, load_index

ARGUMENTS = ["--images", "25", "--texts", "12", "--validation", "4", "--shard-size", "10"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "mini"
    assert main_mini([str(folder), *ARGUMENTS]) == 0
    return folder


def _content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*.tar*")}


def test_mini_data_writes_shards_indexes_and_prompts(out: Path) -> None:
    names = sorted(path.name for path in out.glob("*.tar"))
    assert names == [
        *(f"patchwork-{i:06d}.tar" for i in range(3)),
        *(f"text-{i:06d}.tar" for i in range(2)),
        *(f"train-{i:06d}.tar" for i in range(3)),
        "val-000000.tar",
    ]
    assert all(index_path(str(out / name)).exists() for name in names)
    train = load_index(f"{out}/train-{{000000..000002}}.tar")
    assert [header.samples for header in train] == [10, 10, 5]
    prompts = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 6 * 20 and set(prompts[0]) == {"tag", "include", "prompt"}


def test_a_second_call_keeps_what_is_complete(out: Path) -> None:
    before = _content(out)
    assert main_mini([str(out), *ARGUMENTS]) == 0
    assert _content(out) == before


def test_what_is_missing_or_damaged_is_written_again_with_the_same_bytes(out: Path) -> None:
    before = {name: data for name, (data, _) in _content(out).items()}
    (out / "train-000001.tar").unlink()
    index_path(str(out / "text-000000.tar")).unlink()
    (out / "val-000000.tar").write_bytes(before["val-000000.tar"][:2000])
    assert main_mini([str(out), *ARGUMENTS]) == 0
    assert {name: data for name, (data, _) in _content(out).items()} == before


def test_another_mini_world_in_the_same_folder_is_refused(out: Path) -> None:
    with pytest.raises(ValueError, match="holds a mini world with seed 0, not 1"):
        main_mini([str(out), *ARGUMENTS, "--seed", "1"])


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images must be at least 1, not 0"):
        main_mini([str(tmp_path), "--images", "0"])


def test_index_prints_counts(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index_path(str(out / "train-000000.tar")).unlink()
    assert main_shards(["index", f"{out}/train-{{000000..000002}}.tar"]) == 0
    assert "3 shards, 25 samples" in capsys.readouterr().out
    assert index_path(str(out / "train-000000.tar")).exists()


def test_verify_tells_sound_from_damaged(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = f"{out}/train-{{000000..000002}}.tar"
    assert main_shards(["verify", urls]) == 0
    assert capsys.readouterr().out.count(": sound\n") == 3
    damaged = out / "train-000001.tar"
    data = bytearray(damaged.read_bytes())
    data[3000] ^= 255
    damaged.write_bytes(data)
    assert main_shards(["verify", urls]) == 1
    assert f"{damaged}: its checksum differs" in capsys.readouterr().out


def test_show_prints_texts_and_writes_a_sheet(
    out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    command = ["show", f"{out}/train-000000.tar", "--samples", "5", "--out", str(sheet)]
    assert main_shards(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("human: <image> ") == 5 and "0000000000 json, png, txt" in printed
    with Image.open(sheet) as image:
        assert image.size == (5 * 132 + 4, 136)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_show_of_texts_needs_no_sheet(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_shards(["show", f"{out}/text-000000.tar", "--samples", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize("action", ["index", "verify", "show"])
def test_a_missing_shard_is_one_clear_line(action: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^shard '.*gone\.tar' does not exist"):
        main_shards([action, str(tmp_path / "gone.tar")])
