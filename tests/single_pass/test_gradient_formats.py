"""Gradients of bf16 runs are summed over micro-steps and ranks in the format that the config names.

All micro-batches are alike. Scaled by powers of two, their gradients are exact multiples of one another:
a sum in fp32 has the small ones, while a sum in bf16 has lost them.
"""

import math
from itertools import product

import pytest
import torch

from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import FLOWS, pack
from showo_dist.training.deepspeed_engine import build_deepspeed_engine, deepspeed_config
from showo_dist.training.engine import Engine
from showo_dist.training.torch_engine import build_torch_engine
from tests.checkpoints.group import on_ranks
from tests.single_pass.batches import VOCABULARY, build_tiny, global_batch
from tests.single_pass.case import Case, config_of

RANKS, MICRO_STEPS, SMALL = 2, 4, 2.0**-9
CPU = torch.device("cpu")
SHARDED = ["zero-1", "zero-2", "zero-3"]
FORMATS = ["fp32", "bf16"]
Key = tuple[str, str, str]
OFFLOAD = (("distributed.offload_optimizer", "cpu"), ("distributed.offload_pin_memory", False))
REFERENCE: Key = ("torch", "fp32", "fp32")  # computes in fp32
CASES: list[Key] = [
    *product(SHARDED, FORMATS, FORMATS),
    *product(["torch", "zero-0"], ["fp32"], FORMATS),
    # Another class of DeepSpeed's than without offload; behind ZeRO-0, whose autocast DeepSpeed remembers.
    ("zero-1-offload", "fp32", "fp32"),
]


def _build(key: Key, bf16: bool) -> Engine:
    """An engine that does not move its weights, so that all of its windows are comparable."""
    name, accumulation, reduction = key
    engine = name.removesuffix("-offload")
    settings = (
        ("distributed.gradient_accumulation_dtype", accumulation),
        ("distributed.gradient_reduction_dtype", reduction),
        ("optimizer.params.learning_rate", 1e-30),
        *(OFFLOAD if engine != name else ()),
    )
    case = Case(engine, micro_steps=MICRO_STEPS, bf16=bf16, settings=settings)
    build = build_torch_engine if engine == "torch" else build_deepspeed_engine
    return build(build_tiny(), config_of(case), CPU)


def _norm(engine: Engine, scales: list[float], by_parameter: bool = False) -> float:
    """Norm of the gradient of a window, whose micro-step m counts ``scales[m]``; 0 for those beyond."""
    batch = pack(
        global_batch()[::4], pad_id=VOCABULARY.pad, feature_width=engine.module.feature_width
    )
    for scale in scales + [0.0] * (MICRO_STEPS - len(scales)):
        loss, _ = engine(batch, flow_scale_F=torch.full((len(FLOWS),), scale))
        engine.backward(loss)
        if by_parameter and engine.at_boundary:
            parts = engine.parameter_norms()
        engine.step()
    assert engine.applied
    if by_parameter:
        assert math.hypot(*parts.values()) == pytest.approx(engine.grad_norm(), rel=1e-3)
    return engine.grad_norm()


def _growths(ranks: Ranks) -> list[tuple[float, float]]:
    """For each case: growth of the norm by small gradients of later micro-steps, and of the other rank."""
    found = []
    for key, bf16 in [(REFERENCE, False), *((key, True) for key in CASES)]:
        engine = _build(key, bf16)
        alone = _norm(engine, [float(ranks.is_first)], by_parameter=True)
        later = _norm(
            engine, [float(ranks.is_first)] + (MICRO_STEPS - 1) * [SMALL * ranks.is_first]
        )
        other = _norm(engine, [1.0 if ranks.is_first else SMALL])
        found.append((later / alone - 1, other / alone - 1))
        if key[0] != "torch":
            engine.raw.destroy()  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def growths() -> dict[Key | None, tuple[float, float]]:
    """The growths by case; None: in fp32."""
    return dict(zip([None, *CASES], on_ranks(RANKS, _growths)[0], strict=True))


@pytest.mark.slow
def test_the_reference_is_exact(growths: dict[Key | None, tuple[float, float]]) -> None:
    assert growths[None] == pytest.approx(((MICRO_STEPS - 1) * SMALL, SMALL), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("key", CASES, ids="-".join)
def test_small_gradients_are_kept_where_the_sum_is_fp32(
    key: Key, growths: dict[Key | None, tuple[float, float]]
) -> None:
    _, accumulation, reduction = key
    (later, other), (wanted_later, wanted_other) = growths[key], growths[None]
    if accumulation == "bf16":
        assert abs(later) < 0.05 * wanted_later
    else:
        assert later == pytest.approx(wanted_later, rel=0.01 if reduction == "fp32" else 0.1)
    if accumulation == reduction == "fp32":
        assert other == pytest.approx(wanted_other, rel=0.01)
    else:
        assert abs(other) < 0.05 * wanted_other


@pytest.mark.parametrize("stage", range(4))
def test_fp32_runs_leave_the_formats_to_deepspeed(stage: int) -> None:
    keys = {"communication_data_type", "data_types"}
    fp32, bf16 = (
        deepspeed_config(config_of(Case(f"zero-{stage}", bf16=b)), CPU) for b in (False, True)
    )
    assert not keys & fp32.keys()
    assert bf16["communication_data_type"] == "fp32"
    assert bf16.get("data_types", {}).get("grad_accum_dtype") == ("fp32" if stage else None)
