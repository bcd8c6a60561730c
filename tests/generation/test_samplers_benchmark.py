"""The benchmark of the samplers runs on a tiny model, and its JSON holds the rows that it prints."""

import json
from pathlib import Path

from showo_data.mini import prompts
from tests.conftest import run_script


def test_table_and_json(checkpoint: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "samplers.json"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts(0, 2)))
    options = ["--prompts", file, "--seeds", "0", "1", "--steps", "3", "--repeats", "1"]
    chosen = ["--only", "confidence", "one-by-one", "--json", out]
    printed = run_script("benchmarks/samplers.py", checkpoint, *options, *chosen)
    result = json.loads(out.read_text())
    assert [row["setting"] for row in result["rows"]] == ["confidence", "one-by-one"]
    assert [row["rounds"] for row in result["rows"]] == [3, 16]
    assert all(row["of"] == 2 * len(file.read_text().splitlines()) for row in result["rows"])
    # 16, 13 and 7 of 16 codes are masked before the three rounds: cos(pi / 3) is just below 1/2 in fp32.
    assert abs(result["findings"]["masked codes before a round, mean share"] - 36 / 48) < 1e-6
    assert "\none-by-one " in printed
