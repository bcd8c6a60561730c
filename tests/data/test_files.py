"""Files and folders that appear only when complete, and settings noted in a folder."""

from pathlib import Path

import pytest

from showo_data.files import claim, folder_aside, remove_unfinished, unlike, written_aside


def test_a_file_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"old")
    with written_aside(target) as stream:
        stream.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_block_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), written_aside(tmp_path / "a") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a"
    with folder_aside(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "text"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_block_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with folder_aside(target) as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), folder_aside(target, replace=True) as folder:
        raise RuntimeError
    with pytest.raises(OSError, match="a"), folder_aside(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in target.iterdir()] == ["old"]
    with folder_aside(target, replace=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "half").touch()
    with folder_aside(tmp_path / "a") as folder:
        assert list(folder.iterdir()) == []
    for name in (".b.tar.12.partial", ".c.tar.34.partial"):
        (tmp_path / "a" / name).touch()
    remove_unfinished(tmp_path / "a", "b.tar")
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".c.tar.34.partial"]
    remove_unfinished(tmp_path)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_is_claimed_by_one_group_of_settings(tmp_path: Path) -> None:
    settings = {"seed": 0, "sizes": (1, 2), "weights": "0123456789abcdef" * 4}
    for _ in range(2):
        claim(tmp_path / "out", "settings.json", settings, "a test")
    with pytest.raises(
        ValueError,
        match=r"holds a test with seed 0, not 1; weights 01234567…, not None; new None, not 3 \(s",
    ):
        other = {"seed": 1, "sizes": (1, 2), "new": 3}
        claim(tmp_path / "out", "settings.json", other, "a test")


def test_ignored_settings_may_differ() -> None:
    assert unlike({"seed": 0, "out": "a"}, {"seed": 0, "out": "b"}, ignored=("out",)) == ""
