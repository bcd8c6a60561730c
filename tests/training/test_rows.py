"""Rows filled to a token budget: the same samples, losses and gradients in other micro-steps."""

import itertools
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from showo_data import build_loader
from showo_dist.config import TrainConfig, active_flows, load
from showo_dist.sequences import FLOWS, TOKEN_MULTIPLE
from showo_dist.training.batches import PackedBatches, SequenceMaker
from showo_dist.training.rows import cut, longest_samples, micro_steps_of, rows_needed
from showo_dist.training.setup import flow_specs, load_encoders, load_text
from tests.training.conftest import Outcome, TinyWorld, train
from tests.training.test_compiled import no_compiler

CPU = torch.device("cpu")
BUDGET = "training.tokens_per_step"
ACCUMULATION = "training.gradient_accumulation_steps"
LISTS = [list(lengths) for n in range(6) for lengths in itertools.product((1, 3, 4), repeat=n)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_stretches_are_in_order_and_the_longest_is_as_short_as_possible(rows: int) -> None:
    for lengths in LISTS:
        stretches = cut(lengths, rows)
        assert len(stretches) == rows
        assert [x for s in stretches for x in lengths[s]] == lengths
        longest = max(sum(lengths[s]) for s in stretches)
        places = itertools.combinations_with_replacement(range(len(lengths) + 1), rows - 1)
        every = ([0, *ends, len(lengths)] for ends in places)
        assert longest == min(
            max(sum(lengths[a:b]) for a, b in itertools.pairwise(ends)) for ends in every
        )


@pytest.mark.parametrize("limit", [4, 5, 8])
def test_as_many_rows_as_the_longest_samples_need_hold_shorter_ones_too(limit: int) -> None:
    for lengths in LISTS:
        shorter = [max(0, length - 1) for length in lengths]
        for held in (lengths, shorter):
            stretches = cut(held, rows_needed(lengths, limit))
            assert all(sum(held[s]) <= limit for s in stretches)


def _config(world: TinyWorld, *changes: str) -> TrainConfig:
    return load([f"config={world.config}", *changes], TrainConfig, check=False)


def _maker(config: TrainConfig) -> SequenceMaker:
    encoders, text = load_encoders(config, CPU), load_text(config)
    showo = config.model.showo
    vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
    return SequenceMaker(config, text, vocabulary, encoders)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["dataset.und_type=captioning", "dataset.params.add_caption_prompt=true"],
        ["dataset.und_type=captioning", "dataset.add_system_prompt=true"],
        ["dataset.add_system_prompt=true", "training.down_scale=1"],
        ["training.resize_back=true", "training.down_scale=4"],
    ],
    ids=str,
)
def test_no_sample_is_longer_than_the_config_allows(
    tiny_world: TinyWorld, changes: list[str]
) -> None:
    # So short a budget cuts every text of the tiny world.
    config = _config(tiny_world, *changes, "dataset.preprocessing.max_seq_length=5")
    maker = _maker(config)
    maker._prompts = [max(maker._prompts, key=len)]
    found: dict[str, int] = dict.fromkeys(active_flows(config), 0)
    for number, batch in enumerate(islice(build_loader(flow_specs(config)), 30)):
        if number:
            batch.samples["recon"] = []  # all of them are equally long, and slow to encode
        for samples in batch.samples.values():
            for sample in samples:
                sample.codes_N = torch.zeros(64, dtype=torch.int64)  # only lengths are of interest
        for sequence in maker(batch):
            found[sequence.flow] = max(found[sequence.flow], len(sequence))
    assert found == longest_samples(config, len(maker._prompts[0]), len(maker._system))


def test_features_fill_as_many_rows_as_the_config_allows(tiny_world: TinyWorld) -> None:
    clip = ["model.showo.w_clip_vit=true", "model.showo.clip_tokens=100"]
    config = _config(tiny_world, *clip, "training.batch_size_lm=-1", "training.batch_size_t2i=-1")
    # 64 image tokens, texts of 40; 100 features, a prompt of 9 and a system prompt of 28
    assert longest_samples(config, 9, 28) == {"mmu": 28 + 100 + 3, "recon": 100 + 9 + 2 + 64 + 5}


def _windows(world: TinyWorld, *changes: str) -> list[list[Any]]:
    """Of two optimizer steps: rows, and the samples of each row."""
    config = _config(world, *changes)
    maker, budget = _maker(config), config.training.tokens_per_step
    batches = PackedBatches(
        build_loader(flow_specs(config)),
        maker,
        CPU,
        config.training.gradient_accumulation_steps,
        0,
        TOKEN_MULTIPLE,
        rows=None if budget is None else maker.micro_steps(),
    )
    return [[next(batches)[0], batches.window_read] for _ in range(2)]


def test_rows_hold_the_samples_of_the_step_in_order_within_the_budget(
    tiny_world: TinyWorld,
) -> None:
    plain = _windows(tiny_world, f"{ACCUMULATION}=3")
    for budget, micro_steps in ((125, 18), (450, 5)):
        found = _windows(tiny_world, f"{ACCUMULATION}=3", f"{BUDGET}={budget}")
        for (rows, samples), (before, read) in zip(found, plain, strict=True):
            assert len(rows) == len(samples) == micro_steps
            assert all(row.real_tokens <= budget for row in rows)
            assert sum(row.real_tokens for row in rows) == sum(row.real_tokens for row in before)
            for flow in FLOWS:
                now, then = (
                    [s.position for batch in side for s in batch.samples.get(flow, [])]
                    for side in (samples, read)
                )
                assert now == then
            assert sum(r.label_counts() for r in rows).equal(sum(r.label_counts() for r in before))


KEYS = ("loss", "loss/t2i", "loss/lm", "loss/mmu", "loss/recon", "grad_norm")


@pytest.fixture(scope="module")
def plain(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    run = tmp_path_factory.mktemp("runs") / "plain"
    outcome = train(tiny_world, run, f"{ACCUMULATION}=4", "training.max_train_steps=5")
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


@pytest.mark.parametrize(
    ("ranks", "changes", "micro_steps"),
    [
        (1, [f"{ACCUMULATION}=4", f"{BUDGET}=5000", "distributed.engine=torch"], 1),
        (2, [f"{ACCUMULATION}=2", f"{BUDGET}=130", "distributed.zero_stage=3"], 12),
        (2, [f"{ACCUMULATION}=2", f"{BUDGET}=900", "training.row_steps_per_octave=4"], 2),
    ],
    ids=["one-row", "zero-3", "two-ranks"],
)
def test_the_curve_is_that_of_any_budget(
    tiny_world: TinyWorld,
    plain: Outcome,
    tmp_path: Path,
    ranks: int,
    changes: list[str],
    micro_steps: int,
) -> None:
    more = ["training.max_train_steps=5", "experiment.save_every=3"]
    run = tmp_path / "run"
    found = train(tiny_world, run, *changes, *more, ranks=ranks)
    assert found.code == 0, found.stderr[-3000:]
    assert f"in {micro_steps}\n" in found.stdout
    for key in KEYS:
        assert found.curve(key=key) == pytest.approx(plain.curve(key=key), rel=1e-4), key


@pytest.mark.slow
@no_compiler
def test_a_compiled_run_resumes_on_other_ranks_and_another_budget(
    tiny_world: TinyWorld, plain: Outcome, tmp_path: Path
) -> None:
    run, compiled = tmp_path / "run", "model.compile=true"
    steps = [f"{ACCUMULATION}=2", f"{BUDGET}=900", "training.max_train_steps=5"]
    first = [*steps, "experiment.save_every=3", "distributed.zero_stage=2"]
    began = train(tiny_world, run, compiled, *first, ranks=2)
    assert began.code == 0, began.stderr[-3000:]
    for key in KEYS:
        assert began.curve(key=key) == pytest.approx(plain.curve(key=key), rel=1e-4), key
    shutil.rmtree(run / "checkpoint-000005")
    last = [f"{ACCUMULATION}=4", f"{BUDGET}=5000", "training.max_train_steps=5"]
    resumed = train(tiny_world, run, compiled, *last)
    assert resumed.code == 0, resumed.stderr[-3000:]
    assert "resuming from" in resumed.stdout and "in 1\n" in resumed.stdout
    for key in KEYS:
        wanted = plain.curve(first=4, key=key)
        assert resumed.curve(first=4, key=key) == pytest.approx(wanted, rel=1e-4), key


def test_a_budget_that_no_sample_fits_is_refused(tiny_world: TinyWorld) -> None:
    config = _config(tiny_world, f"{BUDGET}=124")
    with pytest.raises(ValueError, match=rf"{BUDGET} = 124: a recon sample .* can have 125 tokens"):
        micro_steps_of(config, 38, 28)
