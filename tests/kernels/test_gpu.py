"""What only a GPU can show: compiled flex and real FlashAttention, forward and backward."""

import pytest
import torch
from torch import Tensor

from showo_kernels import Span, Visibility, attend, build_plan, flow_losses, select_backend
from tests.kernels.layouts import NAMED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIXED = [document for documents in NAMED.values() for document in documents]
LONG = [
    [Span(129), Span(1026, True)],
    [Span(30), Span(576, True, True), Span(300)],
    [Span(1), Span(258, True), Span(128), Span(1026, True)],
]


def forward_backward(
    backend: str, visibility: Visibility, dtype: torch.dtype, key_heads: int
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, len(visibility), 64) for heads in (4, key_heads, key_heads, 4)]
    *inputs, grad = (torch.randn(s, generator=generator).to("cuda", dtype) for s in shapes)
    leaves = [x.requires_grad_() for x in inputs]
    out = attend(*leaves, build_plan(backend, visibility, "cuda"), scale=0.125)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("documents", [MIXED, LONG], ids=["mixed", "long"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("flex", torch.float32),
        ("flex", torch.bfloat16),
        ("flash", torch.bfloat16),
        ("sdpa", torch.float32),
    ],
)
def test_backends_agree_with_dense(
    backend: str, dtype: torch.dtype, documents: list[list[Span]], key_heads: int
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    visibility = Visibility.from_documents(documents).pad_to(4096)
    found = forward_backward(backend, visibility, dtype, key_heads)
    wanted = forward_backward("dense", visibility, torch.float32, key_heads)
    for x, y in zip(found, wanted, strict=True):
        error = (x.float() - y).abs().max() / y.abs().max()
        assert error < (2e-2 if dtype == torch.bfloat16 else 1e-3), f"{error:.1e}"


def test_flex_compiles_once_for_one_capacity() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for documents in NAMED.values():
        visibility = Visibility.from_documents(documents).pad_to(1024)
        forward_backward("flex", visibility, torch.bfloat16, 4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_auto_prefers_flash_and_keeps_fp32_exact() -> None:
    assert select_backend("auto", "cuda", torch.bfloat16)[0] == "flash"
    assert select_backend("auto", "cuda", torch.float32)[0] == "flex"


def test_flow_losses_in_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).to("cuda", torch.bfloat16).requires_grad_()
        for shape in ((3000, 256), (58498, 256), (58498,))
    )
    targets = torch.randint(58498, (3000,), generator=generator).cuda()
    ones = torch.ones(3000, device="cuda")
    arguments = (targets, targets % 3, ones, torch.full((3,), 1 / 3000, device="cuda"))
    runs = []
    for _ in range(2):
        total = flow_losses(hidden, weight, bias, *arguments)[0]
        runs.append([total.detach(), *torch.autograd.grad(total, (hidden, weight, bias))])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight, bias)]
    loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*exact), targets)
    wanted = [loss.detach(), *torch.autograd.grad(loss, exact)]
    for x, y in zip(runs[0], wanted, strict=True):
        assert (x.float() - y).abs().max() < 2e-2 * y.abs().max()
