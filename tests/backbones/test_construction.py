"""The benchmark of construction under ZeRO-3 at a small size: measured memory is the plan's."""

import json
from pathlib import Path

import pytest

from tests.conftest import run_script


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_measured_memory_is_the_plans(tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "construction.json"
    sizes = ("--hidden", "512", "--layers", "2", "--ranks", "2", "--dtype", dtype)
    run_script("benchmarks/construction.py", *sizes, "--json", out)
    result = json.loads(out.read_text())
    phases = [row["phase"] for row in result["rows"]]
    assert phases == ["construction", "engine", "first step", "second step"]
    plan = result["findings"]["plan, GB per rank"]
    for rank in ("rank 0 GB", "rank 1 GB"):
        measured = {row["phase"]: row[rank] for row in result["rows"]}
        assert measured["second step"] == pytest.approx(plan, rel=0.05)
        assert max(measured.values()) < 1.05 * plan
