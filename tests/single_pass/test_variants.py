"""Several ranks: 20-step curves, bf16, recomputed activations, both loss rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.single_pass import oracle
from tests.single_pass.batches import PER_FLOW, global_batch, split
from tests.single_pass.case import COEFFICIENTS, EPSILON, FLOW_ORDER, LEARNING_RATE, Case
from tests.single_pass.compare import assert_same, assert_updates
from tests.single_pass.group import RankGroup

ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
two_ranks = pytest.mark.parametrize("group", [2], indirect=True)


@pytest.fixture(scope="module")
def plain() -> oracle.Outcome:
    return oracle.train()


@pytest.fixture(scope="module")
def plain_curve() -> oracle.Outcome:
    return oracle.train(steps=20)


@pytest.mark.parametrize("group", [1, 2, 4], indirect=True)
@pytest.mark.parametrize("engine", ["torch", "zero-2"])
def test_curves_of_20_steps(group: RankGroup, engine: str, plain_curve: oracle.Outcome) -> None:
    micro_steps = 4 // group.size
    report = group.run(Case(engine, "asymmetric", micro_steps, steps=20))[0]
    assert plain_curve.totals[-1] < 0.95 * plain_curve.totals[0]
    np.testing.assert_allclose(report.totals, plain_curve.totals, rtol=1e-4)
    np.testing.assert_allclose(report.grad_norms, plain_curve.grad_norms, rtol=1e-3)


@two_ranks
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_is_near_fp32(group: RankGroup, engine: str, plain: oracle.Outcome) -> None:
    for report in group.run(Case(engine, "asymmetric", 4, bf16=True)):
        np.testing.assert_allclose(report.totals, plain.totals, rtol=1e-2)
        np.testing.assert_allclose(report.grad_norms, plain.grad_norms, rtol=3e-2)
        assert all(np.isfinite(weight).all() for weight in report.weights.values())
        # Compare updates: DeepSpeed rounds the initial weights to bf16.
        found = np.concatenate(
            [(report.weights[n] - report.start[n]).ravel() for n in report.start]
        )
        wanted = np.concatenate([(plain.weights[n] - plain.start[n]).ravel() for n in report.start])
        cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
        assert cosine > 0.99, cosine


@two_ranks
@pytest.mark.parametrize("engine", ["torch", "zero-3"])
def test_edits_beside_the_other_flows(group: RankGroup, engine: str) -> None:
    """Of two ranks and micro-steps, each holds other flows; one micro-step has no edit at all."""
    flows = (*FLOW_ORDER, "edit")
    wanted = oracle.train(flows=flows)
    assert wanted.means.keys() == set(flows)
    for report in group.run(Case(engine, "asymmetric", 2, flows=flows)):
        assert_same(report, wanted)


@two_ranks
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ((), 1e-4),
        ((("lora.rank", 2),), 1e-4),
        # One rounded bit of a gradient changes an orthogonalisation in bf16 by several per cent.
        ((("optimizer.name", "muon"), ("optimizer.muon.learning_rate", 0.02)), 0.1),
    ],
    ids=["adamw", "lora", "muon"],
)
def test_zero_1_equals_zero_2_in_bf16(
    group: RankGroup, settings: tuple[tuple[str, Any], ...], tolerance: float
) -> None:
    """Two classes of DeepSpeed's sum gradients in fp32 there; both clip, skip frozen weights and average."""
    averaged = (*settings, ("training.ema.decay", 0.6))
    one, two = (
        group.run(Case(engine, "asymmetric", 4, steps=3, bf16=True, settings=averaged))[0]
        for engine in ("zero-1", "zero-2")
    )
    np.testing.assert_allclose(one.totals, two.totals, rtol=1e-2 * tolerance)
    np.testing.assert_allclose(one.grad_norms, two.grad_norms, rtol=1e-2 * tolerance)
    for name, weight in two.weights.items():
        update = weight - two.start[name]
        found, largest = one.weights[name] - one.start[name], abs(update).max()
        np.testing.assert_allclose(found, update, rtol=0, atol=tolerance * largest, err_msg=name)
        average = two.averages[name]  # as the model computes with it, in bf16
        np.testing.assert_allclose(
            one.averages[name], average, rtol=2**-7, atol=tolerance * largest
        )


@two_ranks
@pytest.mark.parametrize("engine", ["zero-0", "zero-1", "zero-2"])
@pytest.mark.parametrize("normalization", ["global", "rank"])
def test_a_mean_over_ranks_gives_the_same_bits(
    group: RankGroup, engine: str, normalization: str
) -> None:
    """Engines sum over ranks; ``distributed.deepspeed`` may ask for DeepSpeed's own mean."""
    mean = ("distributed.deepspeed", {"gradient_allreduce_op": "mean"})
    summed, averaged = (
        group.run(Case(engine, "asymmetric", 2, 2, normalization=normalization, settings=more))[0]
        for more in ((), (mean,))
    )
    assert summed.totals == averaged.totals and summed.grad_norms == averaged.grad_norms
    for name, weight in summed.weights.items():
        assert np.array_equal(weight, averaged.weights[name]), name


@two_ranks
@pytest.mark.parametrize("engine", ENGINES)
def test_recomputed_activations_change_nothing(
    group: RankGroup, engine: str, plain: oracle.Outcome
) -> None:
    for report in group.run(Case(engine, "asymmetric", 4, checkpointing=True)):
        assert_same(report, plain)


@two_ranks
@pytest.mark.parametrize("how", ["even", "asymmetric", "empty"])
@pytest.mark.parametrize("engine", ["torch", "zero-2"])
def test_published_rule_is_a_mean_per_rank_and_micro_step(
    group: RankGroup, engine: str, how: str, plain: oracle.Outcome
) -> None:
    parts = [part for rank in split(global_batch(), how, 2, 4) for part in rank]
    published = oracle.train(parts=parts)
    for report in group.run(Case(engine, how, 4, normalization="rank")):
        # The report has the global means under both rules.
        assert_same(replace(report, totals=published.totals), published._replace(means=plain.means))
    with pytest.raises(AssertionError):  # the two rules differ
        assert_updates(report, plain, 1e-2)


@two_ranks
def test_a_flow_with_coefficient_0_has_no_effect(group: RankGroup) -> None:
    coefficients = {flow: COEFFICIENTS[flow] for flow in FLOW_ORDER if flow != "t2i"}
    without = oracle.train(coefficients=coefficients, parts=[global_batch()[:-PER_FLOW]])
    for report in group.run(Case("zero-2", "even", 4, coefficients=coefficients)):
        means = {flow: mean for flow, mean in report.means.items() if flow != "t2i"}
        assert_same(replace(report, means=means), without)


@two_ranks
@pytest.mark.parametrize("engine", ENGINES)
def test_the_projector_alone(group: RankGroup, engine: str) -> None:
    """It is trained as if it had the optimizer to itself, and no bit of another weight changes."""
    steps = 3

    def of_projector(model: nn.Module) -> list[torch.optim.Optimizer]:
        named = list(model.named_parameters())
        own = [(n, p) for n, p in named if n.startswith("mm_projector.")]
        groups = [
            {"params": [p for n, p in own if n.endswith("bias")], "weight_decay": 0.0},
            {"params": [p for n, p in own if not n.endswith("bias")], "weight_decay": 0.01},
        ]
        others = [p for n, p in named if not n.startswith("mm_projector.")]
        projector = torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=EPSILON, foreach=False)
        return [projector, torch.optim.SGD(others, lr=0.0)]

    wanted = oracle.train(steps, optimizers=of_projector)
    case = Case(engine, micro_steps=2, steps=steps, settings=(("optimizer.trained", "projector"),))
    for report in group.run(case):
        for name, tensor in wanted.weights.items():
            if name.startswith("mm_projector."):
                assert not np.array_equal(report.weights[name], report.start[name]), name
                torch.testing.assert_close(torch.from_numpy(report.weights[name]), tensor)
            else:
                assert np.array_equal(report.weights[name], report.start[name]), name
