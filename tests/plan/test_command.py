"""``showo-dist plan`` on the mini world's model: arguments in, tables out."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from showo_dist.config import TrainConfig, load
from showo_dist.plan.cli import main
from showo_dist.plan.study import Study
from showo_dist.plan.timing import GPUS, Cluster
from showo_dist.training.setup import RecomputationHint

CONFIG = f"config={Path(__file__).parents[2]}/configs/mini/pretrain.yaml"


def rows(printed: str, columns: int) -> list[list[str]]:
    """Cells of the lines of tables with ``columns`` columns, without headings."""
    lines = [re.split(r"\s*│\s*", line.strip("│ ")) for line in printed.splitlines()]
    return [cells for cells in lines if len(cells) == columns]


def test_every_setting_has_memory_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, "--hosts", "2", "--gpus-per-host", "4", "--scales", "2"]) == 0
    printed = capsys.readouterr().out
    settings = [
        [stage, checkpointing, scale]
        for stage in "0123"
        for checkpointing in ("no", "yes")
        for scale in ("× 1", "× 2")
    ]
    tables = rows(printed, 11)
    assert [cells[:3] for cells in tables] == settings * 2
    memory, time = tables[: len(settings)], tables[len(settings) :]
    assert all(float(cells[-2]) > 0 and cells[-1] == "yes" for cells in memory)
    assert all(float(cells[7]) >= float(cells[4]) > 0 for cells in time), "step, compute"
    assert "limited by" in printed and "samples/s per host" in printed


def test_a_token_budget_has_one_scale_and_the_same_tokens() -> None:
    config = load([CONFIG, "training.gradient_accumulation_steps=4"], TrainConfig, check=False)
    found = []
    for budget in (None, 20000):
        config.training.tokens_per_step = budget
        study = Study(config, GPUS["h200"], Cluster.of(GPUS["h200"], 1, 2), encoded=True)
        found.append(list(study.predictions([1, 2] if budget else [1], [2], both=False)))
    (plain,), (one,) = found
    assert one.tokens == plain.tokens
    assert one.compute.useful_flops == pytest.approx(plain.compute.useful_flops, rel=1e-3)
    assert one.sent < plain.sent, "ZeRO-2 sends gradients in every micro-step"
    assert one.profile.peak > plain.profile.peak
    with pytest.raises(ValueError, match="--scaling: counts micro-steps"):
        main([CONFIG, "training.tokens_per_step=2000", "--scaling", "x.png"])


RECOMPUTING = "model.gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("setting", "memory", "found"),
    [
        (RECOMPUTING, "141", "IS NOT NEEDED: "),
        (RECOMPUTING, "0.01", ""),
        ("model.gradient_checkpointing=false", "141", ""),
    ],
)
def test_recomputation_that_is_not_needed_is_one_line(
    capsys: pytest.CaptureFixture[str], setting: str, memory: str, found: str
) -> None:
    assert main([CONFIG, setting, "--gpus-per-host", "2", "--recomputation", memory]) == 0
    printed = [x for x in capsys.readouterr().out.splitlines() if x.startswith("model.")]
    assert len(printed) == bool(found)
    assert not found or re.search(
        rf"{found}\d.* GB of 141 GB without it \(.* GB with it\)", printed[0]
    )


def test_the_plan_shows_recomputation_that_is_not_needed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([CONFIG, RECOMPUTING, "--gpus-per-host", "2", "--scales", "1"]) == 0
    assert "model.gradient_checkpointing=true IS NOT NEEDED: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_predicts_beside_its_first_steps_whether_it_has_to_recompute() -> None:
    config = load([CONFIG, RECOMPUTING], TrainConfig, check=False)
    hint = RecomputationHint(config, ranks=2, memory=141_000_000_000)
    until = time.monotonic() + 300  # two processes, on a busy machine
    while not (lines := hint.poll()):
        assert time.monotonic() < until
        time.sleep(0.1)
    (line,) = lines
    assert "IS NOT NEEDED" in line and "of 141 GB" in line
    assert hint.poll() == []
    for memory, changes in ((0, [RECOMPUTING]), (141_000_000_000, [])):
        quiet = RecomputationHint(load([CONFIG, *changes], TrainConfig, check=False), 2, memory)
        assert quiet.poll() == []
        quiet.close()
    config.model.showo.llm_config, config.model.showo.llm_model_path = None, "no/such/model"
    failing = RecomputationHint(config, ranks=2, memory=141_000_000_000)
    while not (lines := failing.poll()):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert lines == ["whether model.gradient_checkpointing is needed could not be predicted"]
    ended = RecomputationHint(config, ranks=2, memory=141_000_000_000)
    process = ended._process
    ended.close()
    assert process is not None and process.poll() is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["lora.rank=4", "experiment.init_from=x"], "lora.rank = 4: adapters are not predicted"),
        (["training.t2i_coeff=0", "training.mmu_coeff=0", "training.lm_coeff=0"], "no flow is on"),
    ],
)
def test_what_is_not_predicted_is_refused(change: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        main([CONFIG, *change])


def test_what_does_not_fit_is_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GPUS, "small", replace(GPUS["a100"], memory=30e6))
    assert main([CONFIG, "--gpus-per-host", "2", "--gpu", "small", "--scales", "1"]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_scaling_to_1024_gpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "scaling.png"
    assert main([CONFIG, "--hosts", "128", "--gpus-per-host", "8", "--scaling", str(plot)]) == 0
    table = rows(capsys.readouterr().out, 7)
    assert [cells[0] for cells in table] == [f"{2**power:,}" for power in range(11)]
    speedups = [float(cells[-1].replace(",", "")) for cells in table]
    assert speedups == sorted(speedups) and 1 < speedups[-1] <= 1024
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_scaling_of_hosts_that_its_numbers_do_not_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--gpus-per-host 6: the scaling table has 8 GPUs"):
        main([CONFIG, "--gpus-per-host", "6", "--scaling", str(tmp_path / "x.png")])


def test_dry_run_builds_every_rank(capsys: pytest.CaptureFixture[str]) -> None:
    stage = "distributed.zero_stage=3"
    assert main([CONFIG, stage, "--hosts", "3", "--gpus-per-host", "4", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert [cells[:2] for cells in rows(printed, 11)] == [
        ["1", "0–3"],
        ["2", "4–7"],
        ["3", "8–11"],
    ]
    assert "12 ranks built" in printed
