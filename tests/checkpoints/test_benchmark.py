"""The benchmark runs and leaves the rows that it prints."""

import json
from pathlib import Path

from tests.conftest import run_script


def test_table_and_json(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint.json"
    options = ["--size", "tiny", "--repeats", "1", "--json", str(out)]
    printed = run_script("benchmarks/checkpoint.py", *options, limit_s=400)
    result = json.loads(out.read_text())
    background, waiting = result["rows"]
    assert background["loop"] == "in the background" and waiting["loop"] == "training waits"
    assert background["blocked s"] > 0 and waiting["blocked s"] >= waiting["save s"] > 0
    assert result["findings"]["load with checksums, MB/s"] > 0
    assert printed.rstrip().splitlines()[-1].startswith(list(result["findings"])[-1])
