"""One step of every family equals its reference step, on the engines, ranks and splits of the single pass."""

from dataclasses import replace
from functools import cache

import pytest

from tests.families import FAMILIES
from tests.single_pass import oracle
from tests.single_pass.case import Case
from tests.single_pass.compare import assert_same
from tests.single_pass.group import RankGroup
from tests.single_pass.test_matrix import ENGINES, SPLITS, cases

ALL = [(ranks, replace(case, family=family)) for family in FAMILIES for ranks, case in cases()]
# Without a common factor with a family's number of cases, so that families differ in what is left out.
FEW = ALL[::37]

plain = cache(oracle.train)


def check(group: RankGroup, case: Case) -> None:
    for report in group.run(case):
        assert_same(report, plain(family=case.family))


@pytest.mark.parametrize(("group", "case"), FEW, indirect=["group"], ids=str)
def test_a_few_of_all(group: RankGroup, case: Case) -> None:
    check(group, case)


@pytest.mark.backbones
@pytest.mark.parametrize(("group", "case"), ALL, indirect=["group"], ids=str)
def test_all(group: RankGroup, case: Case) -> None:
    check(group, case)


def test_the_few_have_everything() -> None:
    ranks, few = zip(*FEW, strict=True)
    assert set(ranks) == {1, 2, 4} and {case.micro_steps for case in few} == {1, 4}
    assert {case.family for case in few} == set(FAMILIES)
    assert {case.engine for case in few} == set(ENGINES)
    assert {case.split for case in few} == set(SPLITS)
