"""The rule: arrays against the specification's words, and padding."""

import pytest
import torch
from hypothesis import given, settings

from showo_kernels import Span, Visibility
from tests.kernels.layouts import LAYOUTS, NAMED, padded, rule


@pytest.mark.parametrize("name", NAMED)
def test_named_layouts_follow_the_specification(name: str) -> None:
    assert torch.equal(Visibility.from_documents(NAMED[name]).dense(), rule(NAMED[name]))


@settings(max_examples=25, deadline=None)
@given(LAYOUTS.filter(lambda documents: sum(s.length for d in documents for s in d) <= 200))
def test_any_layout_follows_the_specification(documents: list[list[Span]]) -> None:
    assert torch.equal(Visibility.from_documents(documents).dense(), rule(documents))


def test_clip_rows_before_the_image_see_it() -> None:
    seen = Visibility.from_documents(NAMED["mmu clip"]).dense()
    assert seen[0, 7:31].all() and not seen[0, 1:7].any() and not seen[0, 31:].any()


@settings(max_examples=50, deadline=None)
@given(LAYOUTS)
def test_padding_changes_no_row_and_leaves_none_empty(documents: list[list[Span]]) -> None:
    plain, filled = Visibility.from_documents(documents), padded(documents)
    size, seen = len(plain), filled.dense()
    assert len(filled) % 128 == 0
    assert torch.equal(seen[:size, :size], plain.dense())
    assert not seen[:size, size:].any() and not seen[size:, :size].any()
    assert seen.diagonal().all()
    assert (filled.document_T.diff() >= 0).all() and (filled.reach_T.diff() >= 0).all()


@settings(max_examples=50, deadline=None)
@given(LAYOUTS)
def test_pairs_are_counted_without_the_matrix(documents: list[list[Span]]) -> None:
    visibility = Visibility.from_documents(documents)
    assert visibility.pairs() == int(visibility.dense().sum())


def test_padding_alone() -> None:
    nothing = Visibility.from_documents([])
    assert len(nothing) == 0 and len(nothing.pad_to(256)) == 256
    assert nothing.pairs() == 0


def test_arrays_have_the_promised_types() -> None:
    visibility = padded(NAMED["mmu clip"])
    assert visibility.document_T.dtype == visibility.reach_T.dtype == torch.int32
    assert visibility.is_global_T.dtype == torch.bool


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"Span\.length is 0"):
        Span(0)
    with pytest.raises(ValueError, match="capacity is 8, but the documents hold 40 tokens"):
        Visibility.from_documents(NAMED["lm"]).pad_to(8)
