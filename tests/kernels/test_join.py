"""JoinFlows: placement, gradients, absent sources, cut rows."""

import torch
from torch import Tensor, nn

from showo_kernels import join_flows

TEXT_ROWS = torch.tensor([5, 0, 3])
FEATURE_ROWS = torch.tensor([1, 4])
NO_ROWS = torch.empty(0, dtype=torch.int64)


def sources(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text, features = (torch.randn(n, 4, generator=generator, dtype=dtype) for n in (3, 2))
    return text.requires_grad_(), features.requires_grad_()


def test_rows_are_placed_and_padding_is_zero() -> None:
    text, features = sources()
    joined = join_flows(text, TEXT_ROWS, features, FEATURE_ROWS, 7)
    assert torch.equal(joined[TEXT_ROWS], text) and torch.equal(joined[FEATURE_ROWS], features)
    assert torch.equal(joined[[2, 6]], torch.zeros(2, 4, dtype=torch.float64))


def test_gradcheck() -> None:
    text, features = sources()
    assert torch.autograd.gradcheck(
        lambda t, f: join_flows(t, TEXT_ROWS, f, FEATURE_ROWS, 7), (text, features)
    )


def test_cut_rows_pass_no_gradient_and_lose_no_value() -> None:
    text, features = sources()
    keep = torch.tensor([True, False, True, True, True, False, True])
    joined = join_flows(text, TEXT_ROWS, features, FEATURE_ROWS, 7, keep)
    assert torch.equal(joined, join_flows(text, TEXT_ROWS, features, FEATURE_ROWS, 7))
    grad = torch.arange(28, dtype=torch.float64).view(7, 4) + 1
    grad[1] = float("inf")
    grad_text, grad_features = torch.autograd.grad(joined, (text, features), grad)
    assert torch.equal(grad_text, grad[TEXT_ROWS] * keep[TEXT_ROWS, None])
    assert torch.equal(grad_features[0], torch.zeros(4)) or not grad_features[0].any()
    assert torch.equal(grad_features[1], grad[4])


def test_an_absent_source_gets_a_zero_gradient() -> None:
    """The projector of a rank without images stays in the graph: zero, not None."""
    embedding, projector = nn.Embedding(9, 4), nn.Linear(6, 4)
    text = embedding(torch.tensor([1, 2, 3]))
    joined = join_flows(text, TEXT_ROWS, projector(torch.empty(0, 6)), NO_ROWS, 6)
    joined.sum().backward()
    assert projector.weight.grad is not None and not projector.weight.grad.any()
    assert projector.bias.grad is not None and not projector.bias.grad.any()
    assert embedding.weight.grad is not None and embedding.weight.grad[1:4].eq(1).all()


def test_a_rank_with_nothing_at_all() -> None:
    embedding, projector = nn.Embedding(9, 4), nn.Linear(6, 4)
    joined = join_flows(embedding(NO_ROWS), NO_ROWS, projector(torch.empty(0, 6)), NO_ROWS, 2)
    joined.sum().backward()
    for parameter in (*embedding.parameters(), *projector.parameters()):
        assert parameter.grad is not None and not parameter.grad.any()


def test_sources_of_two_dtypes() -> None:
    text, features = sources(torch.float32)[0], sources(torch.bfloat16)[1]
    joined = join_flows(text, TEXT_ROWS, features, FEATURE_ROWS, 7)
    assert joined.dtype == torch.float32
    grads = torch.autograd.grad(joined.sum(), (text, features))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16]
