"""Averages of the weights on every engine and number of ranks equal those of plain torch."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from showo_dist.config.experiment import LoraConfig
from showo_dist.models.weights.lora import add_adapters
from tests.single_pass import oracle, test_muon
from tests.single_pass.case import Case
from tests.single_pass.group import RankGroup

STEPS, DECAY = 20, 0.6  # the bound of the first steps is the smaller one up to step 12
EMA = ("training.ema.decay", DECAY)
ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
TOLERANCE = 1e-5


class PlainEma:
    """The last of the optimizers of the oracle: averages what the others have updated."""

    def __init__(self, model: nn.Module) -> None:
        self.named = dict(model.named_parameters())
        self.averages = {name: p.detach().clone() for name, p in self.named.items()}
        self.steps = 0

    def step(self) -> None:
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
        for name, parameter in self.named.items():
            self.averages[name] = decay * self.averages[name] + (1 - decay) * parameter.detach()
        self.steps += 1

    def zero_grad(self) -> None:
        """It has no gradients."""


Optimizers = Callable[[nn.Module], Sequence[Optimizer]]


def averages_of(steps: int, optimizers: Optimizers, **more: Any) -> dict[str, torch.Tensor]:
    """The oracle's averages."""
    found: list[PlainEma] = []

    def with_ema(model: nn.Module) -> Any:
        found.append(PlainEma(model))
        return [*optimizers(model), *found]

    oracle.train(steps, optimizers=with_ema, **more)
    return found[0].averages


def assert_close(group: RankGroup, case: Case, wanted: dict[str, torch.Tensor]) -> None:
    for report in group.run(case):
        assert report.averages.keys() == wanted.keys()
        for name, tensor in wanted.items():
            error = (torch.from_numpy(report.averages[name]) - tensor).abs().max()
            assert error <= TOLERANCE, f"{name} is off by {error:.1e}"


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    averages = averages_of(STEPS, lambda model: [oracle._optimizer(model)])
    moved = oracle.train(STEPS).weights
    assert max((averages[n] - moved[n]).abs().max() for n in moved) > 100 * TOLERANCE
    return averages


@pytest.mark.parametrize("group", [1, 2], indirect=True)
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_steps(group: RankGroup, engine: str, plain: dict[str, torch.Tensor]) -> None:
    assert_close(group, Case(engine, steps=STEPS, settings=(EMA,)), plain)


@pytest.mark.parametrize("group", [2], indirect=True)
@pytest.mark.parametrize("engine", ["zero-1"])
def test_with_muon(group: RankGroup, engine: str) -> None:
    wanted = averages_of(test_muon.STEPS, test_muon._optimizers("original"))
    settings = (*test_muon.SETTINGS, EMA)
    assert_close(group, Case(engine, steps=test_muon.STEPS, settings=settings), wanted)


@pytest.mark.parametrize("group", [2], indirect=True)
@pytest.mark.parametrize("engine", ["zero-3"])
def test_with_adapters(group: RankGroup, engine: str) -> None:
    lora = LoraConfig(rank=2)
    wanted = averages_of(
        5,
        lambda model: [oracle._optimizer(model)],
        prepare=lambda model: add_adapters(model, lora, seed=10086),
    )
    assert_close(group, Case(engine, steps=5, settings=(("lora.rank", 2), EMA)), wanted)
