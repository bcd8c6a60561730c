"""Plain text in Parquet and JSON lines."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from showo_data.cli import main_shards
from showo_data.convert import Target, convert, text_items
from showo_data.convert.parquet import ParquetFiles, ParquetRows
from showo_data.convert.text import cut_text
from showo_data.members import BadSampleError
from tests.data.converting import samples

TEXTS = [f"document {i} über Äpfel, {'word ' * (i % 5)}end" for i in range(43)]


def _parquet(path: Path, texts: list[Any], **options: Any) -> Path:
    table = pa.table({"url": [str(i) for i in range(len(texts))], "content": texts})
    parquet.write_table(table, path, **options)
    return path


def _texts(folder: Path) -> list[str]:
    found = samples(folder, "text")
    return [str(found[key].text) for key in sorted(found)]


def test_parquet_files_as_refined_web_has_them(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", TEXTS[:20], row_group_size=7)
    _parquet(tmp_path / "b.parquet", TEXTS[20:], row_group_size=6)
    out = tmp_path / "out"
    command = ["from-text", f"{tmp_path}/*.parquet", "--out", str(out), "--shard-size", "9"]
    assert main_shards(command) == 0
    assert _texts(out) == TEXTS and len(list(out.glob("*.tar"))) == 5


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS).encode()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    out = tmp_path / "out"
    assert main_shards(["from-text", str(path), "--column", "text", "--out", str(out)]) == 0
    assert _texts(out) == TEXTS


def test_resuming_parquet_in_mid_group_gives_the_same_shards(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", TEXTS, row_group_size=20)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    convert(text_items([str(path)]), Target(out=whole, shard_size=8))
    for limit in (8, 24, None):
        convert(text_items([str(path)]), Target(out=parts, shard_size=8, limit=limit))
    assert _texts(parts) == _texts(whole) == TEXTS


def test_rows_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _parquet(tmp_path / "a.parquet", TEXTS, row_group_size=10)
    monkeypatch.setattr("showo_data.convert.parquet._ROWS", 4)
    rows = ParquetRows(str(path), ["content"])
    order = [0, 1, 42, 9, 1, 10, 3, 3, 29, 30, 5]
    assert [rows[number]["content"] for number in order] == [TEXTS[number] for number in order]


def test_rows_of_several_files_in_any_order(tmp_path: Path) -> None:
    paths = [
        str(_parquet(tmp_path / f"{i}.parquet", TEXTS[10 * i : 10 * i + 10])) for i in range(3)
    ]
    files = ParquetFiles(["content"])
    places = list(files.places(paths))
    assert [files.row(*place)["content"] for place in places] == TEXTS[:30]
    assert [files.row(*place)["content"] for place in places[::-3]] == TEXTS[29::-3]


@pytest.mark.parametrize(
    ("newlines", "expected"),
    [("keep", "a\nb\r\n\n c"), ("space", "a b  c"), ("remove", "ab c")],
)
def test_line_breaks(tmp_path: Path, newlines: Any, expected: str) -> None:
    path = _parquet(tmp_path / "a.parquet", ["a\nb\r\n\n c"])
    convert(text_items([str(path)], newlines=newlines), Target(out=tmp_path))
    assert _texts(tmp_path) == [expected]


def test_long_documents_are_cut_into_pieces(tmp_path: Path) -> None:
    long = " ".join(f"w{i}" for i in range(300))
    path = _parquet(tmp_path / "a.parquet", ["short", long, "last"])
    convert(text_items([str(path)], max_chars=500), Target(out=tmp_path))
    found = samples(tmp_path, "text")
    pieces = [str(found[key].text) for key in sorted(found) if key.startswith("0000000001-")]
    assert set(found) - {"0000000000", "0000000002"} == {
        f"0000000001-{i:04d}" for i in range(len(pieces))
    }
    assert " ".join(pieces) == long and all(0 < len(piece) <= 500 for piece in pieces)
    assert len(pieces) == 3


@given(st.text(alphabet="ab \n", min_size=0, max_size=60), st.integers(1, 12))
def test_pieces_are_short_and_leave_nothing_out(text: str, longest: int) -> None:
    pieces = cut_text(text, longest)
    assert all(0 < len(piece) <= longest for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_words_are_cut_only_where_they_must_be() -> None:
    assert cut_text("aaa bbb ccc", 7) == ["aaa bbb", "ccc"]
    assert cut_text("aaa bbb ccc", 6) == ["aaa", "bbb", "ccc"]
    assert cut_text("aaaaabb c", 5) == ["aaaaa", "bb c"]
    assert cut_text("", 5) == []


def test_bad_rows_and_lines_are_counted(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", ["good", None, "", " \n"])
    lines = [b'{"content": "fine"}', b'{"content": 3}', b"{", b"[1]", b'{"content": "\xff"}', b"{}"]
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(lines))
    items = text_items([f"{tmp_path}/a.parquet", f"{tmp_path}/b.jsonl"])
    report = convert(items, Target(out=tmp_path / "out"))
    assert _texts(tmp_path / "out") == ["good", "fine"]
    assert report.skipped == {"no-text": 5, "broken-json": 2, "not-utf8": 1}
    assert report.examples["not-utf8"] == f"{tmp_path}/b.jsonl, line 5"


def test_a_damaged_row_group_costs_only_itself(tmp_path: Path) -> None:
    path = _parquet(
        tmp_path / "a.parquet", TEXTS, row_group_size=10, compression="gzip", use_dictionary=False
    )
    column = parquet.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    report = convert(text_items([str(path)]), Target(out=tmp_path / "out"))
    assert report.skipped == {"unreadable-rows": 10}
    assert _texts(tmp_path / "out") == TEXTS[:10] + TEXTS[20:]


def test_what_a_user_can_mend_is_one_line(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'text'; it has 'url', 'content'"):
        list(text_items([str(path)], column="text"))
    (tmp_path / "b.parquet").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read as Parquet"):
        convert(text_items([f"{tmp_path}/b.parquet"]), Target(out=tmp_path / "out"))
    (tmp_path / "c.csv").touch()
    with pytest.raises(ValueError, match=r"c\.csv: expected \.parquet, \.jsonl or \.jsonl\.gz"):
        list(text_items([f"{tmp_path}/c.csv"]))
    with pytest.raises(ValueError, match="--max-chars must be at least 1, not 0"):
        list(text_items([str(path)], max_chars=0))


def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _parquet(tmp_path / "a.parquet", ["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'showo-dist\[data\]'"):
        list(text_items([str(path)]))


def test_rows_of_a_damaged_group_are_bad_one_by_one(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", TEXTS[:4], compression="none", use_dictionary=False)
    rows = ParquetRows(str(path), ["content"])
    column = parquet.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    for number in range(4):
        with pytest.raises(BadSampleError, match="unreadable-rows"):
            rows[number]
