"""The benchmark runs, its tokens agree, and its JSON holds the rows that it prints."""

import json
from pathlib import Path

from tests.conftest import run_script


def test_table_and_json(tmp_path: Path) -> None:
    out = tmp_path / "generation.json"
    options = ["--size", "tiny", "--repeats", "1", "--dtype", "fp32", "--json", str(out)]
    printed = run_script("benchmarks/generation.py", *options)
    result = json.loads(out.read_text())
    tasks = [row["task"] for row in result["rows"]]
    assert tasks[:4] == [
        "generate 1, published",
        "generate 1, ours",
        "answer 1, published",
        "answer 1, ours",
    ]
    assert all(row["total ms"] > 0 and row["cpu ms"] > 0 for row in result["rows"])
    ours = {row["task"]: row for row in result["rows"] if not row["task"].endswith("one by one")}
    assert all(row["step ms"] > 0 for row in ours.values())
    assert all((row["read ms"] is None) == ("published" in task) for task, row in ours.items())
    assert result["findings"]["equal answer tokens"] == 1
    assert result["findings"]["equal image codes"] > 0.9
    for task in tasks:
        assert f"\n{task} " in printed
