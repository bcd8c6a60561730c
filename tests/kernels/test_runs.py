"""The decomposition: exact, complete and small."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_kernels import Span, Visibility
from showo_kernels.runs import find_runs, without_tails
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


def test_an_unread_last_token_costs_no_keys() -> None:
    """The last token of a reconstruction, but not that of a text-to-image row or one with a label."""
    spans = [Span(2), Span(24, True, True), Span(9), Span(16, True), Span(1)]
    visibility = Visibility.from_documents([spans, [Span(4), Span(6, True)], spans])
    whole = [run.keys for run in find_runs(visibility)]
    runs = [run.keys for run in find_runs(without_tails(visibility, torch.tensor([113])))]
    assert whole.count(52) == 2  # all of the document; row 113 has a label
    assert runs == [1 if i == whole.index(52) else keys for i, keys in enumerate(whole)]


@settings(max_examples=100, deadline=None)
@given(LAYOUTS, st.integers(0, 9999), st.sampled_from([0.0, 0.05, 0.5]))
def test_only_rows_that_nothing_depends_on_leave_their_document(
    documents: list[list[Span]], seed: int, share: float
) -> None:
    visibility = Visibility.from_documents(documents)
    read_T = torch.rand(len(visibility), generator=torch.Generator().manual_seed(seed)) < share
    found = without_tails(visibility, read_T.nonzero().squeeze(1))
    before, after = visibility.dense(), found.dense()
    changed_T = (before != after).any(1)
    assert not (changed_T & read_T).any()
    # No other row attends to a changed one, before or after; a changed one still attends to itself.
    assert not before[~changed_T][:, changed_T].any()
    assert not (after & ~before).any() and after.diagonal().all()
