"""The block mask computed from arrays, against the rule evaluated on every pair."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from showo_kernels import Span, Visibility, attend, build_plan
from showo_kernels.flex import BLOCK, block_mask
from tests.kernels.layouts import LAYOUTS, NAMED, padded


def listed(number: Tensor, columns: Tensor) -> Tensor:
    """Block lists as a matrix: bool (N, N)."""
    blocks = number.shape[-1]
    chosen = torch.zeros(blocks, blocks, dtype=torch.bool)
    for row in range(blocks):
        listed_columns = columns[0, 0, row, : number[0, 0, row]].long()
        assert (listed_columns.diff() > 0).all()
        chosen[row, listed_columns] = True
    return chosen


@settings(max_examples=300, deadline=None)
@given(LAYOUTS)
def test_block_lists_match_brute_force(documents: list[list[Span]]) -> None:
    visibility = padded(documents)
    mask = block_mask(visibility)
    blocks = len(visibility) // BLOCK
    tiles = visibility.dense().view(blocks, BLOCK, blocks, BLOCK)
    full = tiles.all(3).all(1)
    assert torch.equal(listed(mask.full_kv_num_blocks, mask.full_kv_indices), full)
    partial = tiles.any(3).any(1) & ~full
    assert torch.equal(listed(mask.kv_num_blocks, mask.kv_indices), partial)


def test_an_image_is_made_of_full_blocks() -> None:
    mask = block_mask(Visibility.from_documents([[Span(1024, True)]]))
    assert mask.full_kv_num_blocks.eq(8).all() and mask.kv_num_blocks.eq(0).all()


def test_padding_only_touches_the_diagonal() -> None:
    mask = block_mask(Visibility.from_documents(NAMED["t2i"]).pad_to(1024))
    assert mask.kv_num_blocks.eq(1).all() and mask.full_kv_num_blocks.eq(0).all()


def test_shapes_depend_on_the_capacity_alone() -> None:
    shapes = {
        tuple((name, getattr(mask, name).shape) for name in ("kv_indices", "full_kv_indices"))
        for mask in (block_mask(Visibility.from_documents(d).pad_to(768)) for d in NAMED.values())
    }
    assert len(shapes) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_kernel_reads_the_block_mask_and_compiles_once() -> None:
    """Unlike the eager reference, the compiled CPU kernel visits the listed blocks only."""
    compiled = torch.compile(flex_attention, dynamic=False)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 1024, 16, generator=generator)
    torch._dynamo.utils.counters.clear()
    for documents in NAMED.values():
        visibility = Visibility.from_documents(documents).pad_to(1024)
        found = compiled(query, key, value, block_mask=block_mask(visibility), scale=0.3)
        wanted = attend(query, key, value, build_plan("dense", visibility), scale=0.3)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
