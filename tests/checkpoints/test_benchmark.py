"""The benchmark runs and leaves the rows that it prints."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_table_and_json(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint.json"
    options = ["--size", "tiny", "--repeats", "1", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "benchmarks/checkpoint.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    background, waiting = result["rows"]
    assert background["loop"] == "in the background" and waiting["loop"] == "training waits"
    assert background["blocked s"] > 0 and waiting["blocked s"] >= waiting["save s"] > 0
    assert result["findings"]["load with checksums, MB/s"] > 0
    assert done.stdout.rstrip().splitlines()[-1].startswith(list(result["findings"])[-1])
