"""``showo-dist plan --advise``: the keys that it prints, against the plan of a config that has them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from showo_dist.config import TrainConfig, load
from showo_dist.config.rules import check
from showo_dist.plan.advise import Advice, budgets, keys, own_setting, search
from showo_dist.plan.cli import main
from showo_dist.plan.report import fits
from showo_dist.plan.study import Study
from showo_dist.plan.timing import GPUS, Cluster
from showo_dist.training.rows import longest_samples, window_of

CONFIG = f"config={Path(__file__).parents[2]}/configs/mini/pretrain.yaml"
RECOMPUTING = "model.gradient_checkpointing=true"
ACCUMULATING = "training.gradient_accumulation_steps=2"


def mini(*changes: str) -> TrainConfig:
    return load([CONFIG, *changes], TrainConfig, check=False)


def samples_of(config: TrainConfig) -> list[int]:
    """Lengths of a rank's samples of an optimizer step."""
    return window_of(config, longest_samples(config, 16, 28))


@pytest.fixture(scope="module")
def study() -> Study:
    gpu = GPUS["h200"]
    config = mini(ACCUMULATING, RECOMPUTING, "distributed.zero_stage=3")
    return Study(config, gpu, Cluster.of(gpu, 1, 2), encoded=True)


def with_memory(study: Study, memory: float) -> tuple[Study, Advice]:
    """The study and the search on a GPU with so many bytes."""
    gpu = replace(study.gpu, memory=memory)
    here = study.on(gpu, study.cluster)
    return here, search(here)


def plenty(_: Advice) -> float:
    return 141e9


def too_little_for_the_fastest(advice: Advice) -> float:
    return 0.99 * min(advice.tried, key=lambda p: p.time.total_s).profile.peak / 0.92


def the_least(advice: Advice) -> float:
    return 1.02 * min(p.profile.peak for p in advice.tried) / 0.92


@pytest.mark.parametrize("memory", [plenty, too_little_for_the_fastest, the_least])
def test_advised_keys_fit_keep_the_batch_and_are_no_slower(
    study: Study, memory: Callable[[Advice], float]
) -> None:
    roomy = with_memory(study, 141e9)[1]
    here, found = with_memory(study, memory(roomy))
    best = found.best(here)
    assert best is not None and fits(best, here.gpu)
    if fits(found.own, here.gpu):
        assert best.time.total_s <= found.own.time.total_s
    changed = mini(
        ACCUMULATING, RECOMPUTING, "distributed.zero_stage=3", *keys(best.setting, here.config)
    )
    check(changed, for_training=False)
    assert samples_of(changed) == samples_of(here.config)
    # The plan of the changed config predicts the same, which it does from scratch.
    planned = Study(changed, here.gpu, here.cluster, encoded=True)
    again = planned.one(own_setting(changed))
    assert again.time.total_s == pytest.approx(best.time.total_s)
    assert again.profile.peak == best.profile.peak and again.tokens == best.tokens


def test_the_advice_is_the_fastest_of_all_settings_of_the_plan(study: Study) -> None:
    here, found = with_memory(study, 141e9)
    best = found.best(here)
    assert best is not None
    assert best.time.total_s <= min(p.time.total_s for p in study.predictions([1]))


def test_nothing_fits_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GPUS, "tiny", replace(GPUS["a100"], memory=1e6))
    arguments = [CONFIG, "--gpus-per-host", "2", "--gpu", "tiny", "--encoded", "--advise"]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("nothing fits: the least is ")


def test_printed_keys_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [CONFIG, RECOMPUTING, "--gpus-per-host", "2", "--encoded", "--advise"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    pasted = [line for line in lines if line.startswith(("distributed.", "model.", "training."))]
    assert "model.gradient_checkpointing=false" in pasted
    assert not load(
        [CONFIG, RECOMPUTING, *pasted], TrainConfig, check=False
    ).model.gradient_checkpointing
    assert sum(line.startswith("limits: ") for line in lines) == 1


def test_a_mean_per_micro_step_allows_no_other_micro_steps() -> None:
    assert budgets(mini(ACCUMULATING, "training.loss_normalization=rank")) == [None]
    assert len(budgets(mini(ACCUMULATING))) > 2


def test_an_unknown_gpu_among_several_is_named() -> None:
    with pytest.raises(ValueError, match="--gpu h300"):
        main([CONFIG, "--gpu", "h200,h300", "--advise"])
