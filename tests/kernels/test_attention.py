"""Every attention backend against ``dense``, the rule written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from showo_kernels import AttentionPlan, Span, Visibility, attend, build_plan
from showo_kernels.flash import FlashPlan
from showo_kernels.runs import without_tails
from tests.kernels.layouts import (
    IMAGE_FIRST,
    LAYOUTS,
    NAMED,
    NATIVE,
    NO_NATIVE,
    EmulatedVarlen,
    padded,
)

CPU = torch.device("cpu")
SCALE = 0.4


# By name; "flash" through a kernel that a CPU has.
TRAINING_BACKENDS = ["sdpa", "flash", NATIVE]


def plan_for(backend: str, visibility: Visibility) -> AttentionPlan:
    if backend == "flash":
        return FlashPlan.build(visibility, CPU, varlen=EmulatedVarlen())
    return build_plan(backend, visibility)


def draw(
    seed: int, tokens: int, key_heads: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Query of 2 heads of 8, key, value, and a gradient for the output."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, tokens, 8) for heads in (2, key_heads, key_heads, 2)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def forward_backward(plan: AttentionPlan, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Output and the gradients of query, key and value."""
    *inputs, grad = tensors
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = attend(*leaves, plan, scale=SCALE)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad))


def assert_agrees(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """Forward to 1e-5, backward to 1e-4, nothing undefined."""
    for x, y, tolerance in zip(found, wanted, (1e-5, 1e-4, 1e-4, 1e-4), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@settings(max_examples=150, deadline=None)
@given(LAYOUTS, st.integers(0, 9999), st.sampled_from([1, 2]))
def test_any_layout(documents: list[list[Span]], seed: int, key_heads: int) -> None:
    visibility = Visibility.from_documents(documents)
    tensors = draw(seed, len(visibility), key_heads)
    wanted = forward_backward(build_plan("dense", visibility), tensors)
    for backend in ["sdpa", "flash"] + ["native"] * (NO_NATIVE is None):
        assert_agrees(forward_backward(plan_for(backend, visibility), tensors), wanted)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=100, deadline=None)
@given(LAYOUTS, st.integers(0, 9999), st.sampled_from([1, 2]))
def test_any_layout_flex_forward(documents: list[list[Span]], seed: int, key_heads: int) -> None:
    # One capacity for all layouts, as in training: nothing is built twice.
    visibility = Visibility.from_documents(documents).pad_to(1024)
    query, key, value, _ = draw(seed, 1024, key_heads)
    found = attend(query, key, value, build_plan("flex", visibility), scale=SCALE)
    wanted = attend(query, key, value, build_plan("dense", visibility), scale=SCALE)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", TRAINING_BACKENDS)
@pytest.mark.parametrize("name", NAMED)
def test_named_layouts(name: str, backend: str) -> None:
    visibility = padded(NAMED[name])
    tensors = draw(0, len(visibility), 2)
    wanted = forward_backward(build_plan("dense", visibility), tensors)
    assert_agrees(forward_backward(plan_for(backend, visibility), tensors), wanted)


@settings(max_examples=25, deadline=None)
@given(LAYOUTS, st.integers(0, 9999), st.sampled_from([0.0, 0.1]))
def test_flash_without_unread_tails(documents: list[list[Span]], seed: int, share: float) -> None:
    """Rows that nothing depends on have other outputs; everything else and all gradients are the same."""
    visibility = Visibility.from_documents(documents)
    read_T = torch.rand(len(visibility), generator=torch.Generator().manual_seed(seed)) < share
    trimmed = without_tails(visibility, read_T.nonzero().squeeze(1))
    kept_T = (visibility.dense() == trimmed.dense()).all(1)
    *inputs, grad = draw(seed, len(visibility), 2)
    tensors = [*inputs, grad * kept_T[:, None]]
    out, *grads = forward_backward(plan_for("flash", trimmed), tensors)
    wanted, *wanted_grads = forward_backward(build_plan("dense", visibility), tensors)
    found = out[:, :, kept_T], *grads
    assert_agrees(found, (wanted[:, :, kept_T], *wanted_grads))


def test_flash_with_images_first() -> None:
    visibility = padded(IMAGE_FIRST)
    tensors = draw(0, len(visibility), 2)
    wanted = forward_backward(build_plan("dense", visibility), tensors)
    plan = plan_for("flash", visibility)
    assert_agrees(forward_backward(plan, tensors), wanted)
    # Of a reconstruction whose codes are read, the CLIP image alone is gathered.
    visibility = Visibility.from_documents(IMAGE_FIRST[1:2])
    plan = plan_for("flash", without_tails(visibility, torch.arange(36, 52)))
    assert [len(part.rows_Q) for part in plan.gathered] == [24]


@pytest.mark.parametrize("backend", TRAINING_BACKENDS)
def test_documents_do_not_touch_each_other(
    backend: str,
) -> None:
    """A document alone gives the same numbers as the document in a packed row."""
    first, second = NAMED["recon clip"]
    both = Visibility.from_documents([first, second])
    alone = Visibility.from_documents([second])
    tensors = draw(1, len(both), 2)
    tail = [x[:, :, -len(alone) :] for x in tensors]
    packed = [x[:, :, -len(alone) :] for x in forward_backward(plan_for(backend, both), tensors)]
    assert_agrees(tuple(packed), forward_backward(plan_for(backend, alone), tail))


@pytest.mark.parametrize("backend", TRAINING_BACKENDS)
def test_bf16_stays_bf16_and_close(backend: str) -> None:
    visibility = padded(NAMED["recon"])
    tensors = draw(2, len(visibility), 1, torch.bfloat16)
    wanted = forward_backward(build_plan("dense", visibility), [x.float() for x in tensors])
    for found, reference in zip(
        forward_backward(plan_for(backend, visibility), tensors), wanted, strict=True
    ):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), reference, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backend", TRAINING_BACKENDS)
def test_twice_the_same_bits(backend: str) -> None:
    visibility = padded(NAMED["recon clip"])
    tensors = draw(3, len(visibility), 1)
    once, again = (forward_backward(plan_for(backend, visibility), tensors) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


def test_short_documents_take_one_call_and_long_ones_a_call_per_run() -> None:
    short = build_plan("sdpa", Visibility.from_documents(NAMED["recon"]))
    assert [len(calls) for calls in short.calls] == [1]
    documents = [[Span(200), Span(400, True), Span(300)]]
    assert [
        len(calls) for calls in plan_for("sdpa", Visibility.from_documents(documents)).calls
    ] == [3]


@pytest.mark.parametrize("backend", ["sdpa", NATIVE])
def test_an_empty_row_is_allowed_on_a_cpu(backend: str) -> None:
    plan = build_plan(backend, Visibility.from_documents([]))
    empty = torch.zeros(1, 2, 0, 8)
    assert attend(empty, empty, empty, plan, scale=1.0).shape == (1, 2, 0, 8)


def test_errors_name_what_is_allowed() -> None:
    visibility = Visibility.from_documents(NAMED["lm"])
    with pytest.raises(ValueError, match="'flush': allowed are flex, flash, native, sdpa, dense"):
        build_plan("flush", visibility)
    with pytest.raises(ValueError, match="flex: 40 tokens"):
        build_plan("flex", visibility)
    query, key, value, _ = draw(0, 40, 2)
    with pytest.raises(ValueError, match="flash computes in bfloat16 or float16"):
        attend(query, key, value, build_plan("flash", visibility), scale=1.0)
