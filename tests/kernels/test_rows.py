"""Gather with repeated rows: values, gradient, order of addition."""

import torch

from showo_kernels.flash import Gather

INDEX_K = torch.tensor([2, 0, 1, 1, 2, 2, 3])


def test_gather_and_its_gradient() -> None:
    gather = Gather.build(INDEX_K, torch.device("cpu"))
    x_THD = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(gather(x_THD), x_THD[INDEX_K])
    assert torch.autograd.gradcheck(gather, (x_THD,))


def test_half_precision_copies_are_added_in_fp32() -> None:
    index_C = torch.zeros(257, dtype=torch.int64)
    gather = Gather.build(index_C, torch.device("cpu"))
    x_THD = torch.zeros(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    gather(x_THD).sum().backward()
    # Adding ones in bfloat16 stops at 256; 257 rounds to 256 once at the end, 260 would not.
    assert x_THD.grad is not None and x_THD.grad.item() == 256
    grad_KHD = torch.full((257, 1, 1), 3.0, dtype=torch.bfloat16)
    (grad,) = torch.autograd.grad(gather(x_THD), x_THD, grad_KHD)
    assert grad.item() == torch.tensor(771.0).bfloat16().item()
