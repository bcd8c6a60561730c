"""The decomposition: exact, complete and small."""

import pytest
import torch
from hypothesis import given, settings

from showo_kernels import Span, Visibility
from showo_kernels.runs import find_runs
from tests.kernels.layouts import LAYOUTS, NAMED

EXPECTED_RUNS = {
    "t2i": ["causal", "full"],
    "lm": ["causal"],
    "mmu": ["full", "causal"],
    # The row before the image sees all of it: it belongs to the image's run.
    "mmu clip": ["causal", "full", "causal"],
    "recon": ["causal", "full", "causal", "full"],
    "adjacent bidirectional": ["full", "full", "full"],
}


@settings(max_examples=300, deadline=None)
@given(LAYOUTS)
def test_runs_equal_the_rule(documents: list[list[Span]]) -> None:
    visibility = Visibility.from_documents(documents)
    runs = find_runs(visibility)
    rebuilt = torch.zeros(len(visibility), len(visibility), dtype=torch.bool)
    stop = 0
    for run in runs:
        assert run.row_start == stop < run.row_stop
        stop = run.row_stop
        later = runs.global_G[run.global_start : run.global_stop]
        keys = torch.cat([later, torch.arange(run.key_start, run.key_stop)])
        assert run.keys == len(keys) == len(keys.unique())
        for row in range(run.row_start, run.row_stop):
            unseen = run.row_stop - 1 - row if run.causal else 0
            rebuilt[row, keys[: len(keys) - unseen]] = True
    assert stop == len(visibility)
    assert torch.equal(rebuilt, visibility.dense())


@pytest.mark.parametrize("name", EXPECTED_RUNS)
def test_tasks_need_few_runs(name: str) -> None:
    runs = find_runs(Visibility.from_documents(NAMED[name]))
    assert ["causal" if run.causal else "full" for run in runs] == EXPECTED_RUNS[name]


def test_a_global_span_is_one_run_however_long() -> None:
    runs = find_runs(Visibility.from_documents([[Span(50), Span(500, False, True), Span(50)]]))
    assert len(list(runs)) == 3
