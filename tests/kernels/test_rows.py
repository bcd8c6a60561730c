"""Gather with repeated rows: values, gradient, order of addition."""

import torch
from torch import Tensor

from showo_kernels.flash import Gather

INDEX_K = torch.tensor([2, 0, 1, 1, 2, 2, 3])


def test_gather_and_its_transpose() -> None:
    gather = Gather.build(INDEX_K)
    x_THD = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    grad_KHD = torch.randn(7, 2, 3, dtype=torch.float64)
    assert torch.equal(gather(x_THD), x_THD[INDEX_K])
    (wanted,) = torch.autograd.grad(x_THD[INDEX_K], x_THD, grad_KHD)
    torch.testing.assert_close(added(gather, grad_KHD, 4), wanted)


def test_rows_without_copies_keep_their_values() -> None:
    gather = Gather.build(torch.tensor([3, 1]))
    total_THD = torch.ones(5, 1, 1)
    gather.add_to(total_THD, torch.tensor([2.0, 4.0]).view(2, 1, 1))
    assert total_THD.flatten().tolist() == [1, 5, 1, 3, 1]


def test_half_precision_copies_are_added_in_fp32() -> None:
    gather = Gather.build(torch.zeros(257, dtype=torch.int64))
    # Adding ones in bfloat16 stops at 256; 257 rounds to 256 once at the end, 771 to 772.
    for number, total in ((1.0, 256.0), (3.0, 772.0)):
        grad_KHD = torch.full((257, 1, 1), number, dtype=torch.bfloat16)
        assert added(gather, grad_KHD, 1).item() == total


def added(gather: Gather, grad_CHD: Tensor, rows: int) -> Tensor:
    total_THD = grad_CHD.new_zeros(rows, *grad_CHD.shape[1:])
    gather.add_to(total_THD, grad_CHD)
    return total_THD
