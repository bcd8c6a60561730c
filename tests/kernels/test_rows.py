"""Gather with repeated rows: values, gradient, order of addition."""

import torch

from showo_kernels.flash import Gather

INDEX_K = torch.tensor([2, 0, 1, 1, 2, 2, 3])


def test_gather_and_its_transpose() -> None:
    gather = Gather.build(INDEX_K)
    x_THD = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    grad_KHD = torch.randn(7, 2, 3, dtype=torch.float64)
    assert torch.equal(gather(x_THD), x_THD[INDEX_K])
    (wanted,) = torch.autograd.grad(x_THD[INDEX_K], x_THD, grad_KHD)
    torch.testing.assert_close(gather.transpose(grad_KHD), wanted)


def test_half_precision_copies_are_added_in_fp32() -> None:
    gather = Gather.build(torch.zeros(257, dtype=torch.int64))
    # Adding ones in bfloat16 stops at 256; 257 rounds to 256 once at the end, 771 to 772.
    for number, total in ((1.0, 256.0), (3.0, 772.0)):
        grad_KHD = torch.full((257, 1, 1), number, dtype=torch.bfloat16)
        assert gather.transpose(grad_KHD).item() == total


def test_one_further_copy_is_rounded_once() -> None:
    gather = Gather.build(torch.tensor([0, 1, 1, 0]))
    grad_KHD = torch.randn(4, 8, 16).bfloat16()
    wanted = (grad_KHD[:2].float() + grad_KHD[2:].flip(0).float()).bfloat16()
    assert torch.equal(gather.transpose(grad_KHD), wanted)
