"""Held-out loss: the same for every number of ranks and engine, and without influence on training."""

import json
from pathlib import Path

import pytest

from showo_data.shards import write_shard
from tests.training.conftest import Outcome, TinyWorld, train

TOLERANCE = 1e-4
FLOWS = ("t2i", "lm", "mmu", "recon")


def held_out(world: TinyWorld) -> list[str]:
    """Config changes: validate on held-out images; plain text has no held-out shard here."""
    values = dict.fromkeys(("t2i", "mmu", "recon"), f"{world.data}/val-000000.tar")
    values["lm"] = f"{world.data}/text-000000.tar"
    paths = [f"dataset.params.validation_{f}_shards_path_or_url={v}" for f, v in values.items()]
    return [*paths, "dataset.params.validation_samples=11", "experiment.eval_every=4"]


def validated(outcome: Outcome) -> dict[int, dict[str, float]]:
    """The validation metrics of a run by step."""
    return {
        step: {key: value for key, value in line.items() if key.startswith("validation/")}
        for step, line in outcome.losses.items()
        if "validation/loss" in line
    }


@pytest.fixture(scope="module")
def two_ranks(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    run = tmp_path_factory.mktemp("runs") / "two"
    changes = [*held_out(tiny_world), "training.max_train_steps=10", "experiment.save_every=4"]
    outcome = train(tiny_world, run, *changes, ranks=2)
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


def test_every_flow_is_measured_when_due_and_at_the_end(two_ranks: Outcome) -> None:
    found = validated(two_ranks)
    assert sorted(found) == [4, 8, 10]
    for metrics in found.values():
        assert set(metrics) == {"validation/loss", *(f"validation/{flow}" for flow in FLOWS)}
        parts = [metrics[f"validation/{flow}"] for flow in FLOWS]
        weights = (1.0, 0.1, 1.0, 1.0)
        total = sum(w * part for w, part in zip(weights, parts, strict=True))
        assert metrics["validation/loss"] == pytest.approx(total)
    assert found[10]["validation/t2i"] < found[4]["validation/t2i"]  # it learns
    assert "validation of t2i: 8 of 8 held-out samples" in two_ranks.stdout
    assert "validation of lm: 11 of 11 held-out samples" in two_ranks.stdout


@pytest.mark.parametrize(
    "changes",
    [
        ["distributed.zero_stage=3"],
        ["distributed.engine=torch", "training.seed=10086"],
    ],
    ids=["zero-3", "torch"],
)
def test_one_rank_gives_the_same_value(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path, changes: list[str]
) -> None:
    split = ["training.gradient_accumulation_steps=2", "training.max_train_steps=10"]
    one = train(tiny_world, tmp_path / "run", *held_out(tiny_world), *split, *changes)
    assert one.code == 0, one.stderr[-3000:]
    for step, metrics in validated(two_ranks).items():
        assert validated(one)[step] == pytest.approx(metrics, rel=TOLERANCE)


def test_a_checkpoint_gives_the_same_value_again(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    """Weights of step 8 validate to the same digits in another run with another seed and learning rate 0."""
    changes = [
        *held_out(tiny_world),
        f"experiment.init_from={two_ranks.run}/checkpoint-000008",
        *("training.seed=7", "dataset.params.wds_seed=8", "training.max_train_steps=1"),
        *("lr_scheduler.params.warmup_steps=5", "lr_scheduler.scheduler=constant"),
        *("optimizer.params.weight_decay=0", "training.label_smoothing=0.1"),
    ]
    again = train(tiny_world, tmp_path / "run", *changes, ranks=2)
    assert again.code == 0, again.stderr[-3000:]
    assert validated(again)[1] == validated(two_ranks)[8]


def test_training_does_not_notice(
    tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path
) -> None:
    changes = ["training.max_train_steps=10", "experiment.eval_every=0"]
    without = train(tiny_world, tmp_path / "run", *changes, ranks=2)
    assert without.code == 0, without.stderr[-3000:]
    assert not validated(without)
    assert without.curve() == two_ranks.curve()
    assert without.curve(key="grad_norm") == two_ranks.curve(key="grad_norm")


def test_fixed_ratios_are_used(tiny_world: TinyWorld, two_ranks: Outcome, tmp_path: Path) -> None:
    """Another ratio is another loss, on the same weights and data."""
    values = {}
    for ratio in (0.1, 1.0):
        changes = [
            *held_out(tiny_world),
            f"experiment.init_from={two_ranks.run}/checkpoint-000010",
            *("training.max_train_steps=1", "lr_scheduler.params.warmup_steps=5"),
            *("lr_scheduler.scheduler=constant", f"training.eval_mask_ratios=[{ratio}]"),
        ]
        outcome = train(tiny_world, tmp_path / str(ratio), *changes)
        assert outcome.code == 0, outcome.stderr[-3000:]
        values[ratio] = validated(outcome)[1]["validation/recon"]
    assert values[0.1] != values[1.0]


def test_unreadable_data_is_named(tiny_world: TinyWorld, tmp_path: Path) -> None:
    outcome = train(
        tiny_world,
        tmp_path / "run",
        f"dataset.params.validation_t2i_shards_path_or_url={tiny_world.data}/none.tar",
    )
    assert outcome.code == 2
    assert "none.tar" in outcome.stderr


def test_data_without_a_readable_sample_is_named_before_the_first_step(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": f"k{i}", "jpg": b"none", "txt": b"a"} for i in range(3)])
    key = "dataset.params.validation_t2i_shards_path_or_url"
    outcome = train(tiny_world, tmp_path / "run", f"{key}={shard}", "experiment.eval_every=5")
    assert outcome.code == 2 and not outcome.losses
    assert f"{key}: none of its first 3 samples can be read" in outcome.stderr


def test_metrics_stay_one_line_per_step(two_ranks: Outcome) -> None:
    lines = (two_ranks.run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
