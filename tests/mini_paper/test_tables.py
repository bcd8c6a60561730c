"""Intervals are Student's, tables hold the results alone, and the loss curve is held to its spread."""

import json
import math
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from mini_paper import curve
from mini_paper.arms import ARMS, CONTROL, Scale
from mini_paper.steps import Paper
from mini_paper.tables import interval, paired, read_results, write

from showo_dist.evaluation.text_to_image import t_quantile


def density(x: float, freedom: int) -> float:
    """Of Student's t distribution."""
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("freedom", [*range(1, 36), 100, 200])
def test_quantiles_enclose_95_per_cent(freedom: int) -> None:
    end, pieces = t_quantile(freedom), 4_000
    middles = ((i + 0.5) * end / pieces for i in range(pieces))
    inside = 2 * sum(density(x, freedom) for x in middles) * end / pieces
    assert inside == pytest.approx(0.95, abs=6e-5)  # three decimals


def test_interval_of_known_values() -> None:
    found = interval([1, 2, 3, 4, 5])
    assert found.mean == 3 and found.half == pytest.approx(2.7764 * math.sqrt(2.5) / math.sqrt(5))
    assert interval([0.5]).half is None and not interval([0.5]).excludes_zero
    assert interval([1, 1, 1]).excludes_zero and not interval([-1, 0, 1]).excludes_zero


@pytest.mark.parametrize("count", [2, 3, 5])
def test_intervals_cover_the_mean_in_19_of_20_draws(count: int) -> None:
    rng, draws = random.Random(count), 4_000
    found = [interval([rng.gauss(7, 2) for _ in range(count)]) for _ in range(draws)]
    covered = sum(abs(i.mean - 7) <= (i.half or 0) for i in found) / draws
    assert covered == pytest.approx(0.95, abs=0.014)  # four standard deviations


def test_paired_differences_need_common_seeds() -> None:
    one, other = {0: 0.5, 1: 0.7, 2: 0.9}, {1: 0.6, 2: 0.7, 3: 0.1}
    found = paired(one, other)
    assert found and found.mean == pytest.approx(fmean([0.1, 0.2]))
    assert found.half == pytest.approx(12.7062 * stdev([0.1, 0.2]) / math.sqrt(2))
    assert paired({0: 1.0}, {1: 1.0}) is None


def save(folder: Path, arm: str, seed: int, **values: Any) -> None:
    result = {"arm": arm, "seed": seed, "values": values}
    (folder / f"{arm}-{seed}.json").write_text(json.dumps(result))


def test_page_holds_the_results_and_marks_differences(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for seed in range(3):
        save(folder, CONTROL, seed, geneval=0.4 + 0.01 * seed, rare=0.2, questions=0.9)
        save(folder, "reca", seed, geneval=0.5 + 0.01 * seed, rare=0.2 + 0.1 * (seed - 1))
    assert read_results(folder)["reca"][2] == {"geneval": 0.52, "rare": pytest.approx(0.3)}
    page = write(Paper(tmp_path, Scale()), tmp_path / "page").read_text()
    assert "| RecA, VQ | 3 | 51.0 ± 2.5 |" in page
    assert "| RecA, VQ – without reconstruction | +10.0 ± 0.0* | +0.0 ± 24.8 |" in page
    assert "* marks the 1 of 2 intervals" in page
    assert "supervised" not in page and "complete captions |" not in page
    assert (tmp_path / "page" / "scores.png").is_file()


def test_every_arm_has_a_control_among_the_arms() -> None:
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names)
    assert {arm.control for arm in ARMS} <= set(names)
    assert {"reca", "reca-blur", "reca-clip-64", "reca-clip-32", "supervised", "recon-10"} <= set(
        names
    )


def curves(**losses: list[float]) -> dict[str, dict[str, float]]:
    return {
        f"validation/{flow}": {str(10 * i): v for i, v in enumerate(values, start=1)}
        for flow, values in losses.items()
    }


def run_with(folder: Path, **losses: list[float]) -> Path:
    rows = [{"step": 10 * (i + 1)} for i in range(max(map(len, losses.values())))]
    for flow, values in losses.items():
        for row, value in zip(rows, values, strict=False):
            row[f"validation/{flow}"] = value  # type: ignore[assignment]
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_curve_is_held_to_the_spread_of_others(tmp_path: Path) -> None:
    references = [
        curves(t2i=[1.00, 0.50], mmu=[2.0, 1.0]),
        curves(t2i=[1.02, 0.51], mmu=[2.2, 1.1]),
        curves(t2i=[0.98, 0.49], mmu=[1.8, 0.9]),
    ]
    # Relative deviations of 2 and 10 %: four of them, and sqrt(4/3) for the mean of three.
    near, far = 1 + 0.9 * 0.0924, 1 + 1.1 * 0.0924
    run = run_with(tmp_path / "run", t2i=[1.0 * near, 0.5], mmu=[2.0, 1.0 * (1 + 4 * 0.1)])
    assert curve.check(run, references) == []
    run = run_with(tmp_path / "run", t2i=[1.0 * far, 0.5], mmu=[2.0])
    late, missing = curve.check(run, references)
    assert late.startswith("validation/t2i at step 10: 1.102, expected 1.000")
    assert missing == "validation/mmu at step 20: missing"
