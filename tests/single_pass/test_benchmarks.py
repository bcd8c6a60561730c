"""The benchmarks run and write the rows that they print."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_script
from tests.training.test_compiled import no_compiler

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


def _run(name: str, folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    out = folder / "new" / f"{name}.json"
    options = ["--size", "tiny", "--repeats", "1", "--dtype", "fp32", *more, "--json", str(out)]
    printed = run_script(
        "-c", WITHOUT, ABSENT[name], f"benchmarks/{name}.py", *options, limit_s=120
    )
    return json.loads(out.read_text()), printed


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


@pytest.mark.slow
@no_compiler
def test_the_compiled_step_is_compared_too(tmp_path: Path) -> None:
    """Its losses and gradients are checked against the packed step's before it is timed."""
    result, _ = _run("single_pass", tmp_path, "--compiled")
    steps = [row["step"] for row in result["rows"]]
    assert steps == ["packed", "packed, compiled", "padded", "padded, fused gelu"]
    for step in steps[:2]:
        assert result["findings"][f"padded / {step}, tokens"] > 1
