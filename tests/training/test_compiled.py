"""Compiled blocks train as eager ones do: same losses, no graph break, one graph per row capacity."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_script

TINY = [
    "model.showo.llm_config.num_hidden_layers=2",
    "model.showo.llm_config.hidden_size=128",
    "model.showo.llm_config.intermediate_size=128",
    "model.showo.llm_config.num_attention_heads=2",
    "optimizer.params.learning_rate=1e-4",
]
LIMITS = {"fp32": 1e-5, "bf16": 1e-3}
no_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)


def rows(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The table of benchmarks/compiled.py for a tiny model."""
    found = folder / "rows.json"
    settings = ["--steps", "2", *options, "--set", *TINY]
    run_script("benchmarks/compiled.py", *settings, "--json", found, limit_s=1200)
    return json.loads(found.read_text())["rows"]


@pytest.mark.slow
@no_compiler
@pytest.mark.parametrize(
    ("dtype", "engines", "recompute"),
    [("fp32", ["torch", "zero-3"], ["no", "yes"]), ("bf16", ["zero-1", "zero-3"], ["no"])],
)
def test_losses_graphs_and_breaks(
    tmp_path: Path, dtype: str, engines: list[str], recompute: list[str]
) -> None:
    settings = ["--dtypes", dtype, "--engines", *engines, "--recompute", *recompute]
    table = rows(tmp_path, *settings, "--attention", "sdpa")
    assert len(table) == len(recompute) * len(engines)
    for row in table:
        assert row["largest difference"] <= LIMITS[dtype], row
        assert row["capacities"] > 1
        assert row["graphs"] == row["capacities"] + 1, row  # the losses have one
        assert row["breaks"] == 0, row
