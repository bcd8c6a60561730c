"""Every family trains on two ranks as the plain loop does: all flows, RecA's two, and adapters."""

from dataclasses import replace
from functools import partial

import pytest

from showo_dist.config.experiment import LoraConfig
from showo_dist.models.weights.lora import add_adapters
from tests.families import FAMILIES
from tests.single_pass import oracle
from tests.single_pass.case import Case
from tests.single_pass.compare import assert_same
from tests.single_pass.group import RankGroup

families = pytest.mark.parametrize("family", FAMILIES)
two_ranks = pytest.mark.parametrize("group", [2], indirect=True)


@two_ranks
@families
def test_all_flows_sharded_and_recomputed(group: RankGroup, family: str) -> None:
    wanted = oracle.train(family=family)
    case = Case("zero-3", "asymmetric", 2, checkpointing=True, family=family)
    for report in group.run(case):
        assert_same(report, wanted)


@two_ranks
@families
def test_reca(group: RankGroup, family: str) -> None:
    reca = {"mmu": 1.0, "recon": 1.0}
    wanted = oracle.train(coefficients=reca, family=family)
    for report in group.run(Case("zero-2", "even", coefficients=reca, family=family)):
        assert_same(report, wanted)


@two_ranks
@families
def test_adapters_in_all_linear_layers(group: RankGroup, family: str) -> None:
    """B starts as 0, so that its weight is its update, which is less exact than a weight."""
    lora = partial(add_adapters, lora=LoraConfig(rank=2, train_head=True), seed=10086)
    wanted = oracle.train(prepare=lora, family=family)
    trained = {n for n, weight in wanted.weights.items() if not weight.equal(wanted.start[n])}
    layers = {n.partition(".lora_")[0].rpartition(".")[2] for n in trained if ".lora_B" in n}
    assert len(layers) >= 4 and "showo.lm_head.weight" in trained
    wanted = wanted._replace(weights={name: wanted.weights[name] for name in trained})
    settings = (("lora.rank", 2), ("lora.train_head", True))
    for report in group.run(Case("torch", "empty", 2, settings=settings, family=family)):
        report = replace(report, weights={name: report.weights[name] for name in trained})
        assert_same(report, wanted, weights=1e-3)
