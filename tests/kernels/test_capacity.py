"""The ladder of row capacities."""

import pytest
import torch

from showo_kernels import Span, Visibility, capacity
from showo_kernels.flash import FlashPlan
from tests.kernels.layouts import EmulatedVarlen


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_few_capacities_hold_every_row(steps: int) -> None:
    rungs = {tokens: capacity(tokens, steps) for tokens in range(1, 40_000, 7)}
    for tokens, rung in rungs.items():
        assert rung >= tokens and rung % 128 == 0
        assert rung - tokens < max(128, rung / steps)
        assert capacity(rung, steps) == rung
    # No more than `steps` in an octave, whatever the lengths.
    assert len({rung for rung in rungs.values() if 8192 < rung <= 16384}) <= steps


def test_without_steps_every_multiple_is_a_capacity() -> None:
    assert [capacity(n, 0) for n in (1, 128, 129, 9001)] == [128, 128, 256, 9088]


def test_keys_are_gathered_only_where_a_run_needs_it() -> None:
    def plan(*documents: list[Span]) -> FlashPlan:
        visibility = Visibility.from_documents(documents)
        return FlashPlan.build(visibility, torch.device("cpu"), EmulatedVarlen())

    t2i, mmu = [Span(12), Span(18, True)], [Span(19, True), Span(23)]
    assert not plan(t2i, [Span(40)], mmu).gathered
    # Six rows before the image see it, and one row of another kind stays in place with all others.
    (part,) = plan(t2i, [Span(7), Span(24, True, True), Span(15)]).gathered
    assert len(part.rows_Q) == 6 and len(part.keys.index_C) == 6 + 24
