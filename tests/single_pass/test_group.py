"""The watchdog of the rank group, and training without a process group."""

import time

import pytest

from tests.single_pass import oracle
from tests.single_pass.case import Case
from tests.single_pass.compare import assert_same
from tests.single_pass.group import HangError, RankGroup
from tests.single_pass.rank import run_case


def test_a_hang_fails_with_its_name_and_the_next_case_runs() -> None:
    with RankGroup(2) as group:
        group.run(Case("torch"))
        start = time.monotonic()
        with pytest.raises(HangError, match="zero-2-even-accumulation-1 on 2 ranks hangs"):
            group.run(Case("zero-2", hangs=True), limit_s=5)
        assert time.monotonic() - start < 15
        assert_same(group.run(Case("torch"))[1], oracle.train())


def test_an_error_on_a_rank_is_shown() -> None:
    with (
        RankGroup(2) as group,
        pytest.raises(AssertionError, match=r"(?s)rank \d of 2.*no-such-split"),
    ):
        group.run(Case("torch", "no-such-split"))


@pytest.mark.parametrize("split", ["even", "asymmetric", "empty"])
def test_plain_single_process(split: str) -> None:
    assert_same(run_case(Case("torch", split, 4)), oracle.train())
