"""The GPU path's budget of one optimizer step: host waits, copies, kernels and bytes, counted on shapes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from showo_dist.config import TrainConfig, load
from showo_dist.plan.costs import Cost
from showo_dist.plan.ledger_step import StepLedger, ledger_of_step
from showo_dist.training.step import Stepper
from tests.conftest import ROOT

MICRO_STEPS = 2
CONFIG = [
    f"config={ROOT}/configs/reca/showo_reca_256_clip.yaml",
    f"training.gradient_accumulation_steps={MICRO_STEPS}",
    "model.gradient_checkpointing=false",
    "model.showo.llm_config.vocab_size=58498",
]
# The wait is for the gradient's norm, which decides whether the weights change.
BUDGET = {"waits per step": 1, "blocking or pageable copies per step": 0}
# Of one block, without compilation and with it: forward and backward of a micro-step, and the update. Bytes
# per token in rows of the model's width. Sums of gradients in fp32 are 9 of the kernels and 46 of the rows.
LAYER_KERNELS, LAYER_ROWS, UPDATE_KERNELS = 168, 300, 46
COMPILED_KERNELS, COMPILED_ROWS = 138, 261


@cache
def step_of(layers: int, *more: str) -> StepLedger:
    settings = [f"model.showo.llm_config.num_hidden_layers={layers}", *more]
    return ledger_of_step(load([*CONFIG, *settings], TrainConfig, check=False))


def counted(step: StepLedger) -> dict[str, int]:
    transfers = step.ledger.transfers
    return {
        "waits per step": sum(t.waits for t in transfers),
        "blocking or pageable copies per step": sum(
            t.kind == "to device" and (t.blocking or not t.pinned) for t in transfers
        ),
    }


def per_layer(key: Callable[[Cost], float], update: bool, *more: str) -> float:
    """What one more block adds to the step: to its update, or to everything else."""
    one, three = (
        sum(key(e.cost) for e in step_of(n, *more).ledger.entries if (e.phase == "step") == update)
        for n in (1, 3)
    )
    return (three - one) / 2


def test_waits_and_copies_of_a_step() -> None:
    found, sites = counted(step_of(1)), {t.site for t in step_of(1).ledger.transfers}
    assert found == BUDGET, f"made by {sorted(sites)}"


def test_more_layers_wait_no_more() -> None:
    assert counted(step_of(3)) == counted(step_of(1))


def test_kernels_and_bytes_of_a_layer() -> None:
    kernels = per_layer(lambda cost: cost.kernels, update=False) / MICRO_STEPS
    rows = per_layer(lambda cost: cost.bytes, update=False) / step_of(1).tokens / (2 * 2048)
    assert kernels <= LAYER_KERNELS
    assert rows <= LAYER_ROWS
    assert per_layer(lambda cost: cost.kernels, update=True) <= UPDATE_KERNELS


def test_clipping_and_compilation_wait_no_more() -> None:
    assert counted(step_of(1, "training.max_grad_norm=1.0", "model.compile=true")) == BUDGET


def test_a_token_budget_waits_no_more_and_adds_gradients_once() -> None:
    plain, budget = step_of(1), step_of(1, "training.tokens_per_step=32768")
    assert counted(budget) == BUDGET
    assert (budget.micro_steps, plain.micro_steps) == (1, MICRO_STEPS)
    assert budget.tokens == plain.tokens
    assert budget.useful_flops == pytest.approx(plain.useful_flops, rel=1e-4)
    sums = [sum(e.part == "gradient sums" for e in s.ledger.entries) for s in (budget, plain)]
    assert sums[0] <= 0.6 * sums[1]


@pytest.mark.parametrize("stage", [1, 3])
def test_other_stages_wait_no_more(stage: int) -> None:
    """ZeRO-1 has a class of DeepSpeed's for sums in fp32, which clips by itself."""
    keys = "training.max_grad_norm=1.0", f"distributed.zero_stage={stage}", "model.compile=true"
    assert counted(step_of(1, *keys)) == counted(step_of(3, *keys)) == BUDGET


def test_kernels_and_bytes_of_a_compiled_layer() -> None:
    compiled = "model.compile=true"
    step = step_of(1, compiled)
    kernels = per_layer(lambda cost: cost.kernels, False, compiled) / MICRO_STEPS
    rows = per_layer(lambda cost: cost.bytes, False, compiled) / step.tokens / (2 * 2048)
    assert kernels <= COMPILED_KERNELS
    assert rows <= COMPILED_ROWS


def test_compiled_losses_move_fewer_bytes() -> None:
    plain, compiled = (
        sum(
            e.cost.bytes
            for e in step_of(1, *keys).ledger.entries
            if e.part == "head and loss" and e.cost.kind != "product"
        )
        for keys in ((), ("model.compile=true",))
    )
    assert compiled < 0.55 * plain


def test_compiled_blocks_of_zero_3_are_counted_with_whole_weights() -> None:
    """After a step the weights are partitioned."""
    two, three = (step_of(1, "model.compile=true", f"distributed.zero_stage={z}") for z in (2, 3))
    moved = [sum(e.cost.bytes for e in s.ledger.entries if e.name == "fused") for s in (two, three)]
    # Its linear layers add their bias in an operation of its own.
    assert 0 < moved[0] <= moved[1] < 1.05 * moved[0]


def test_encoders_are_waited_for_where_no_thread_makes_the_next_window() -> None:
    """``training.pack_ahead=false`` is a setting of the plan too."""
    found = []
    for ahead in ("null", "false"):
        keys = ["model.showo.llm_config.num_hidden_layers=1", f"training.pack_ahead={ahead}"]
        config = load([*CONFIG, *keys], TrainConfig, check=False)
        found.append(ledger_of_step(config, encoded=False).ledger.waits)
    assert found[0] == BUDGET["waits per step"] and found[1] > found[0]


Extra = Callable[[torch.Tensor], Any]


@pytest.fixture
def loop_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Extra]], dict[str, int]]:
    """Count a step whose loop does something more in every micro-step."""

    def run(extras: list[Extra]) -> dict[str, int]:
        scale = Stepper._scale

        def slower(self: Stepper, counts_F: torch.Tensor, *rest: Any) -> torch.Tensor:
            for extra in extras:
                extra(counts_F)
            return scale(self, counts_F, *rest)

        monkeypatch.setattr(Stepper, "_scale", slower)
        return counted(step_of.__wrapped__(1))

    return run


WAITS: list[Extra] = [
    lambda x: x.sum().item(),
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: bool(x.sum()),
    lambda x: x.nonzero(),
]


def test_every_kind_of_wait_in_the_loop_is_seen(loop_with: Any) -> None:
    found, name = loop_with(WAITS), "waits per step"
    assert found[name] == counted(step_of(1))[name] + MICRO_STEPS * len(WAITS)


def host_numbers() -> torch.Tensor:
    return torch.from_numpy(np.zeros(8))


COPIES: list[Extra] = [
    lambda x: host_numbers().to(x.device),
    lambda x: host_numbers().to(x.device, non_blocking=True),
    lambda x: host_numbers().pin_memory().to(x.device),
    lambda x: torch.zeros_like(x).copy_(torch.from_numpy(np.zeros(len(x)))),
]


def test_blocking_and_pageable_copies_in_the_loop_are_seen_and_others_are_free(
    loop_with: Any,
) -> None:
    free: Extra = lambda x: host_numbers().pin_memory().to(x.device, non_blocking=True)  # noqa: E731
    found, name = loop_with([*COPIES, free]), "blocking or pageable copies per step"
    assert found[name] == counted(step_of(1))[name] + MICRO_STEPS * len(COPIES)
