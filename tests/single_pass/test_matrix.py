"""One step of every engine, number of ranks and split of the batch equals the reference step."""

import pytest

from tests.single_pass import oracle
from tests.single_pass.case import Case
from tests.single_pass.compare import assert_same
from tests.single_pass.group import RankGroup
from tests.training.test_compiled import no_compiler

ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
SPLITS = ["even", "asymmetric", "empty"]


@pytest.fixture(scope="module")
def plain() -> oracle.Outcome:
    return oracle.train()


def cases() -> list[tuple[int, Case]]:
    """The number of ranks and the case of every combination."""
    return [
        (ranks, Case(engine, split, micro_steps))
        for ranks in (1, 2, 4)
        for engine in ENGINES
        for micro_steps in (1, 4)
        for split in SPLITS
        if ranks * micro_steps > 1 or split == "even"
    ]


@pytest.mark.parametrize(("group", "case"), cases(), indirect=["group"], ids=str)
def test_one_step(group: RankGroup, case: Case, plain: oracle.Outcome) -> None:
    for report in group.run(case):
        assert_same(report, plain)


def _compiled() -> list[tuple[int, Case]]:
    """Of two ranks and two micro-steps, all in one capacity; ZeRO-3 keeps no weight gathered."""
    on = (("model.compile", True),)
    return [(2, Case(engine, "asymmetric", 2, settings=on)) for engine in ENGINES]


@pytest.mark.slow
@no_compiler
@pytest.mark.parametrize(("group", "case"), _compiled(), indirect=["group"], ids=str)
def test_one_step_of_compiled_blocks(group: RankGroup, case: Case, plain: oracle.Outcome) -> None:
    for report in group.run(case):
        assert_same(report, plain)
