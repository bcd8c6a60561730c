"""Recomputed activations and LoRA change nothing about the step: every engine, every split, the plain one."""

from dataclasses import replace

import numpy as np
import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder

from showo_dist.config import TrainConfig
from showo_dist.config.experiment import LoraConfig
from showo_dist.config.training import DistributedConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.lora import add_adapters
from showo_dist.training.deepspeed_engine import (
    check_offload,
    deepspeed_config,
)
from tests.single_pass import oracle
from tests.single_pass.batches import build_tiny, global_batch
from tests.single_pass.case import Case, Report, config_of
from tests.single_pass.compare import assert_same
from tests.single_pass.group import RankGroup

ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
LORA = {"lora.rank": 3, "lora.alpha": 6.0, "lora.train_head": True}
two_ranks = pytest.mark.parametrize("group", [2], indirect=True)


def adapt(model: ShowO) -> None:
    settings = {key.removeprefix("lora."): value for key, value in LORA.items()}
    add_adapters(model, LoraConfig(**settings), TrainConfig().training.seed)


@pytest.fixture(scope="module")
def plain() -> oracle.Outcome:
    return oracle.train()


@pytest.fixture(scope="module")
def plain_lora() -> oracle.Outcome:
    return oracle.train(steps=3, prepare=adapt)


@two_ranks
@pytest.mark.parametrize("engine", ENGINES)
def test_every_second_block(group: RankGroup, engine: str, plain: oracle.Outcome) -> None:
    settings = (("model.gradient_checkpointing_every", 2),)
    case = Case(engine, "asymmetric", 2, checkpointing=True, settings=settings)
    for report in group.run(case):
        assert_same(report, plain)


@pytest.mark.parametrize(("every", "runs"), [(1, [2, 2]), (2, [2, 1]), (3, [2, 1])])
def test_which_blocks_run_twice(every: int, runs: list[int]) -> None:
    model = build_tiny().train()
    model.recompute_activations(every)
    counts = [0, 0]
    for number, block in enumerate(model.showo.model.layers):

        def count(*_: object, number: int = number) -> None:
            counts[number] += 1

        block.mlp.register_forward_pre_hook(count)
    means = oracle.flow_means(model, global_batch())
    sum(means.values()).backward()  # type: ignore[union-attr]
    assert counts == runs


def _trained(report: Report, wanted: oracle.Outcome) -> tuple[Report, oracle.Outcome]:
    """Both without the weights that LoRA leaves as they are, which must be untouched."""
    model = build_tiny()
    adapt(model)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    for name in report.weights.keys() - names:
        np.testing.assert_array_equal(report.weights[name], report.start[name], err_msg=name)
    for kept in (report.start, report.weights, wanted.start, wanted.weights):
        assert names <= kept.keys()
    ours = replace(
        report,
        start={name: report.start[name] for name in names},
        weights={name: report.weights[name] for name in names},
    )
    return ours, wanted._replace(
        start={name: wanted.start[name] for name in names},
        weights={name: wanted.weights[name] for name in names},
    )


@two_ranks
@pytest.mark.parametrize("engine", ENGINES)
def test_lora(group: RankGroup, engine: str, plain_lora: oracle.Outcome) -> None:
    """Frozen table, frozen blocks, an empty rank: adapters and head are those of the plain loop."""
    case = Case(engine, "asymmetric", 2, steps=3, settings=tuple(LORA.items()))
    for report in group.run(case):
        assert_same(*_trained(report, plain_lora))


@two_ranks
@pytest.mark.parametrize("engine", ["torch", "zero-3"])
def test_lora_with_an_empty_rank_and_recomputation(
    group: RankGroup, engine: str, plain_lora: oracle.Outcome
) -> None:
    case = Case(engine, "empty", 2, steps=3, checkpointing=True, settings=tuple(LORA.items()))
    for report in group.run(case):
        assert_same(*_trained(report, plain_lora))


def test_lora_learns() -> None:
    curve = oracle.train(steps=20, parts=[global_batch()], prepare=adapt).totals
    assert curve[-1] < 0.97 * curve[0], curve


@two_ranks
def test_lora_alone_with_dropout_repeats(group: RankGroup) -> None:
    """Nothing but adapters is trained; the same run twice is the same to the last bit."""
    settings = (("lora.rank", 2), ("lora.train_projector", False), ("lora.dropout", 0.5))
    first, again = (group.run(Case("zero-2", steps=2, settings=settings))[0] for _ in range(2))
    assert first.totals == again.totals
    without = group.run(Case("zero-2", steps=2, settings=settings[:2]))[0]
    assert first.totals[1] != without.totals[1]
    for name, weight in first.weights.items():
        assert np.array_equal(weight, again.weights[name]), name
        assert ("lora_" in name) != np.array_equal(weight, first.start[name]), name


@two_ranks
@pytest.mark.parametrize(
    ("engine", "what"),
    [
        ("zero-1", ["optimizer"]),
        ("zero-2", ["optimizer"]),
        ("zero-3", ["optimizer"]),
        ("zero-3", ["param"]),
        ("zero-3", ["optimizer", "param"]),
    ],
)
def test_offloaded_state_is_trained_alike(
    group: RankGroup, engine: str, what: list[str], plain: oracle.Outcome
) -> None:
    """DeepSpeed's own path for gradients and updates in host memory: on a CPU it is a different one, too."""
    settings = tuple((f"distributed.offload_{part}", "cpu") for part in what)
    settings += (("distributed.offload_pin_memory", False),)
    for report in group.run(Case(engine, "asymmetric", 2, settings=settings)):
        assert_same(report, plain)


def test_offload_reaches_deepspeed() -> None:
    import torch

    settings = (
        ("distributed.offload_optimizer", "cpu"),
        ("distributed.offload_param", "nvme"),
        ("distributed.offload_path", "/fast"),
    )
    made = deepspeed_config(config_of(Case("zero-3", settings=settings)), torch.device("cpu"))
    zero = made["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["offload_param"] == {"device": "nvme", "pin_memory": True, "nvme_path": "/fast"}
    assert (
        "offload_optimizer"
        not in deepspeed_config(config_of(Case("zero-3")), torch.device("cpu"))["zero_optimization"]
    )


@pytest.mark.skipif(AsyncIOBuilder().is_compatible(verbose=False), reason="libaio is there")
def test_a_disk_needs_a_library() -> None:
    with pytest.raises(ValueError, match=r"offload_param = nvme: .* libaio"):
        check_offload(DistributedConfig(offload_param="nvme", offload_path="/fast"))
