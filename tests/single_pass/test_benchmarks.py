"""The benchmarks run and write the rows that they print."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

# A bare GPU image has torch and little else: the packages of the first argument cannot be imported.
WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))
sys.path.insert(0, "benchmarks")
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ABSENT = {
    "attention": "deepspeed,webdataset,omegaconf,transformers,tokenizers,PIL",
    "losses": "deepspeed,webdataset,omegaconf,transformers,tokenizers,PIL",
    "single_pass": "deepspeed,webdataset,omegaconf,PIL",
}


def _run(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    out = folder / "new" / f"{name}.json"
    options = ["--size", "tiny", "--repeats", "1", "--dtype", "fp32", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, ABSENT[name], f"benchmarks/{name}.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()), done.stdout


@pytest.mark.parametrize(
    ("name", "first_column", "wanted"),
    [
        ("attention", "attention", {"sdpa", "dense", "padded dense mask", "plain causal"}),
        ("losses", "head", {"flow_losses", "plain"}),
        ("single_pass", "step", {"packed", "padded"}),
    ],
)
def test_table_and_json(tmp_path: Path, name: str, first_column: str, wanted: set[str]) -> None:
    result, printed = _run(name, tmp_path)
    rows = {row[first_column]: row for row in result["rows"]}
    assert wanted <= rows.keys()
    assert all(row["forward ms"] > 0 and row["cpu ms"] > 0 for row in rows.values())
    assert result["findings"] and result["machine"]["torch"]
    # The table is printed last, with the rows of the file.
    last = printed.rstrip().splitlines()[-1]
    assert last.startswith(list(result["findings"])[-1])
    for label in rows:
        assert f"\n{label} " in printed
