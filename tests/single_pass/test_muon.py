"""Five steps of Muon on every engine and number of ranks equal those of torch.optim.Muon."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from showo_dist.config.experiment import LoraConfig
from showo_dist.config.training import TrainingConfig
from showo_dist.models.weights.lora import add_adapters
from showo_dist.sequences import pack
from showo_dist.training.muon import Muon, first_update_line, orthogonal, rate_factor
from showo_dist.training.step import Stepper
from showo_dist.training.torch_engine import build_torch_engine
from tests.single_pass import oracle
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch
from tests.single_pass.case import EPSILON, LEARNING_RATE, Case, config_of
from tests.single_pass.group import RankGroup

RATE = 0.02
STEPS = 5
CPU = torch.device("cpu")
TOLERANCE = 1e-5
SETTINGS: tuple[tuple[str, Any], ...] = (
    ("optimizer.name", "muon"),
    ("optimizer.muon.learning_rate", RATE),
)
ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]


class Fp32Muon(torch.optim.Muon):
    """torch's own code, whose one conversion to bf16 only copies."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with patch.object(Tensor, "bfloat16", Tensor.clone):
            return super().step(closure)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name


def _optimizers(adjust: str) -> Callable[[nn.Module], list[torch.optim.Optimizer]]:
    def build(model: nn.Module) -> list[torch.optim.Optimizer]:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        rest = [(n, p) for n, p in named if not _is_matrix(n, p)]
        groups = [
            {"params": [p for n, p in rest if n.endswith("bias")], "weight_decay": 0.0},
            {"params": [p for n, p in rest if not n.endswith("bias")], "weight_decay": 0.01},
        ]
        return [
            Fp32Muon(
                [p for n, p in named if _is_matrix(n, p)],
                lr=RATE,
                weight_decay=0.01,
                adjust_lr_fn=adjust,
            ),
            torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=EPSILON, foreach=False),
        ]

    return build


@pytest.fixture(scope="module")
def plain() -> oracle.Outcome:
    return oracle.train(STEPS, optimizers=_optimizers("original"))


def assert_close(group: RankGroup, case: Case, wanted: oracle.Outcome) -> None:
    for report in group.run(case):
        for name, tensor in wanted.weights.items():
            error = (torch.from_numpy(report.weights[name]) - tensor).abs().max()
            assert error <= TOLERANCE, f"{name} is off by {error:.1e}"


def _case(engine: str, micro_steps: int, *more: tuple[str, Any]) -> Case:
    return Case(engine, micro_steps=micro_steps, steps=STEPS, settings=(*SETTINGS, *more))


def _matrix(ranks: list[int], micro_steps: list[int]) -> list[tuple[int, Case]]:
    return [(r, _case(engine, m)) for r in ranks for engine in ENGINES for m in micro_steps]


@pytest.mark.parametrize(("group", "case"), _matrix([2], [4]), indirect=["group"], ids=str)
def test_two_ranks(group: RankGroup, case: Case, plain: oracle.Outcome) -> None:
    assert_close(group, case, plain)


@pytest.mark.muon
@pytest.mark.parametrize(("group", "case"), _matrix([1, 2, 4], [1, 4]), indirect=["group"], ids=str)
def test_every_engine(group: RankGroup, case: Case, plain: oracle.Outcome) -> None:
    assert_close(group, case, plain)


@pytest.mark.parametrize("group", [2], indirect=True)
@pytest.mark.parametrize("stage", ["zero-2", "zero-3"])
def test_state_in_host_memory(group: RankGroup, stage: str, plain: oracle.Outcome) -> None:
    offload = (("distributed.offload_optimizer", "cpu"), ("distributed.offload_pin_memory", False))
    assert_close(group, _case(stage, 1, *offload), plain)


@pytest.mark.parametrize("group", [2], indirect=True)
@pytest.mark.parametrize("engine", ["zero-3"])
def test_adapters(group: RankGroup, engine: str) -> None:
    """LoRA's factors are matrices; what is frozen is not touched."""
    lora = LoraConfig(rank=4)
    wanted = oracle.train(
        STEPS,
        optimizers=_optimizers("original"),
        prepare=lambda model: add_adapters(model, lora, seed=TrainingConfig().seed),
    )
    factors = [name for name in wanted.weights if "lora_" in name]
    assert all(not torch.equal(wanted.weights[name], wanted.start[name]) for name in factors)
    assert_close(group, _case(engine, 1, ("lora.rank", 4)), wanted)


def test_a_matrix_without_an_update_is_noticed() -> None:
    """Muon must have orthogonalised all matrices, not some."""
    model, case = build_tiny(), _case("torch", 1)
    engine = build_torch_engine(model, config_of(case), CPU)
    stepper = Stepper(engine, case.coefficients, "global", CPU)
    width, pad = model.feature_width, VOCABULARY.pad
    left_out = engine.optimizer.param_groups[-1]["params"].pop()
    assert left_out.ndim == 2
    stepper([pack(global_batch(), pad_id=pad, feature_width=width)])
    with pytest.raises(AssertionError, match=r"orthogonalised 13 of 14 matrices"):
        first_update_line(model, engine.orthogonalised)
    engine.optimizer.param_groups[-1]["params"].append(left_out)
    before = engine.orthogonalised
    stepper([pack(global_batch(), pad_id=pad, feature_width=width)])
    line = first_update_line(model, engine.orthogonalised - before)
    assert line == "Muon orthogonalised 14 matrices in the first update"


@pytest.mark.parametrize("group", [2], indirect=True)
def test_rates_of_adamw(group: RankGroup) -> None:
    wanted = oracle.train(STEPS, optimizers=_optimizers("match_rms_adamw"))
    adjusted = ("optimizer.muon.adjust_lr", "match_rms_adamw")
    assert_close(group, _case("zero-1", 1, adjusted), wanted)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (32, 32), (5, 64)])
@pytest.mark.parametrize("rule", ["original", "match_rms_adamw"])
def test_bf16_is_bit_for_bit_torchs(shape: tuple[int, int], rule: str) -> None:
    """For the same gradients; fp32 differs from torch's Muon by choice."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    group = {
        "params": [ours],
        "muon": True,
        "lr": RATE,
        "momentum": 0.95,
        "weight_decay": 0.01,
        "ns_steps": 5,
        "adjust_lr": rule,
    }
    muon = Muon([group], torch.device("cpu"), torch.bfloat16)
    muon.state[ours] = {"momentum_buffer": torch.zeros(shape), "step": torch.tensor(0.0)}
    reference = torch.optim.Muon([theirs], lr=RATE, weight_decay=0.01, adjust_lr_fn=rule)
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
        assert torch.equal(ours, theirs)
    assert muon.orthogonalised == 3


def test_matrices_that_are_iterated_together_get_the_same_bits_as_alone() -> None:
    torch.manual_seed(0)
    shapes = [(40, 64), (64, 40), (48, 48), *[(40, 64)] * 9]
    matrices = [torch.randn(shape).bfloat16() for shape in shapes]
    found = dict(orthogonal(matrices, 5))
    assert sorted(found) == list(range(len(shapes)))
    for number, matrix in enumerate(matrices):
        ((_, alone),) = orthogonal([matrix], 5)
        assert torch.equal(found[number], alone) and alone.shape == matrix.shape


def test_singular_values_become_equal() -> None:
    torch.manual_seed(0)
    ((_, found),) = orthogonal([torch.randn(40, 64)], 5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    assert rate_factor((64, 16), "original") == 2 and rate_factor((16, 64), "original") == 1
