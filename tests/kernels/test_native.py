"""The compiled CPU kernel: what the tests of all backends leave out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from showo_kernels import Span, Visibility, attend, build_plan
from tests.kernels.layouts import LAYOUTS, NAMED, NO_NATIVE

pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason=f"{NO_NATIVE}")

# Longer than a tile of rows and a tile of keys, with hidden, partly seen and fully seen tiles.
LONG = [
    [Span(30), Span(300, True, True), Span(170)],
    [Span(150), Span(200, True), Span(90, False, True)],
]


def run(
    backend: str, documents: list[list[Span]], inputs: list[Tensor], scale: float
) -> list[Tensor]:
    """Output and the gradients of query, key and value; ``inputs``: these and the output's gradient."""
    *leaves, grad = (x.detach().clone() for x in inputs)
    for leaf in leaves:
        leaf.requires_grad_()
    plan = build_plan(backend, Visibility.from_documents(documents))
    out = attend(*leaves, plan, scale=scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def draw(
    documents: list[list[Span]],
    heads: tuple[int, int] = (2, 2),
    size: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """Query, key, value and the output's gradient; ``heads``: of queries and of keys."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(span.length for document in documents for span in document)
    count, key_count = heads
    return [
        torch.randn(1, h, tokens, size, generator=generator).to(dtype)
        for h in (count, key_count, key_count, count)
    ]


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape and error(x, y) < tolerance


@settings(max_examples=150, deadline=None)
@given(LAYOUTS, st.integers(0, 9999), st.sampled_from([(2, 2), (4, 2), (3, 1)]))
def test_any_layout_in_bf16(documents: list[list[Span]], seed: int, heads: tuple[int, int]) -> None:
    """bf16 rounds inputs, weights and results to 8 bits: 0.4 % each."""
    inputs = draw(documents, heads, 16, torch.bfloat16, seed)
    wanted = run("dense", documents, [x.double() for x in inputs], 0.25)
    found = run("native", documents, inputs, 0.25)
    assert all(x.dtype == torch.bfloat16 for x in found)
    # A lone token's gradients of query and key are zero, and there rounding is all there is.
    for x, y in zip(found, wanted, strict=True):
        allowed = 0.01 * y.norm() + 0.004 * wanted[0].norm()
        assert (x.double() - y).norm() <= allowed


@pytest.mark.parametrize("size", [2, 4, 24, 32, 64, 80, 96, 128, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_of_any_even_size(size: int, dtype: torch.dtype) -> None:
    inputs = draw(LONG, (4, 2), size, dtype)
    wanted = run("dense", LONG, [x.double() for x in inputs], size**-0.5)
    tolerance = 2e-6 if dtype == torch.float32 else 5e-3
    assert_close(run("native", LONG, inputs, size**-0.5), wanted, tolerance)


@pytest.mark.parametrize("scale", [0.0, 40.0])
def test_scores_far_apart(scale: float) -> None:
    """Softmax as good as one key: weights underflow, maxima grow from tile to tile."""
    inputs = draw(LONG)
    wanted = run("dense", LONG, [x.double() for x in inputs], scale)
    found = run("native", LONG, inputs, scale)
    for x, y in zip(found, wanted, strict=True):
        assert torch.isfinite(x).all()
        assert (x.double() - y).norm() <= 1e-4 * (y.norm() + wanted[0].norm())


def test_any_strides() -> None:
    """Heads or tokens outermost, every second number, tokens an odd number apart."""
    wanted = run("native", LONG, inputs := draw(LONG), 0.3)
    tokens_outermost = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    every_second = [torch.stack([x, x], -1)[..., 0] for x in inputs]
    odd = [torch.cat([x, x[..., :1]], -1)[..., :-1] for x in inputs]
    for views in (tokens_outermost, every_second, odd):
        *leaves, grad = views
        leaves = [x.requires_grad_() for x in leaves]
        out = attend(*leaves, build_plan("native", Visibility.from_documents(LONG)), scale=0.3)
        found = [out, *torch.autograd.grad(out, leaves, grad)]
        assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_the_number_of_threads_changes_no_bit() -> None:
    inputs = draw(LONG, (4, 4), 32, torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run("native", LONG, inputs, 0.2))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_visible(bad: float, dtype: torch.dtype) -> None:
    """In its document: the step is then skipped. Not in another one's."""
    inputs = draw(LONG, dtype=dtype)
    clean = run("native", LONG, inputs, 0.3)
    inputs[1][0, :, 40, :] = bad
    broken = run("native", LONG, inputs, 0.3)
    first = sum(span.length for span in LONG[0])
    for x, y in zip(broken, clean, strict=True):
        assert not torch.isfinite(x[:, :, :first]).all()
        assert torch.equal(x[:, :, first:], y[:, :, first:])


@pytest.mark.parametrize(("size", "dtype"), [(7, torch.float32), (8, torch.float64)])
def test_what_it_cannot_compute_is_refused(size: int, dtype: torch.dtype) -> None:
    inputs = draw(NAMED["lm"], size=size, dtype=dtype)
    with pytest.raises(ValueError, match=f"not {dtype} with heads of {size}: choose sdpa"):
        run("native", NAMED["lm"], inputs, 1.0)
