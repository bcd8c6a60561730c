"""Which FlashAttention runs, and how the ``flash_attn`` package is called."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from showo_kernels import Visibility, attend, build_plan
from showo_kernels.flash import FlashPlan
from showo_kernels.varlen import PackageVarlen, VarlenCall, find_varlen, installed_varlen
from tests.kernels.layouts import NAMED, EmulatedVarlen

CPU = torch.device("cpu")


def _call(
    rows: Tensor,
    keys: Tensor,
    max_rows: int,
    max_keys: int,
    causal: bool,
    *left_out: object,
) -> VarlenCall:
    assert left_out == (0.0, -1, -1, 0.0, None), "dropout, windows, softcap or slopes"
    return VarlenCall(rows, keys, max_rows, max_keys, 0, causal)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, None, None]:
    """Signature of flash-attn 2.8."""
    left_out = (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes)
    call = _call(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, *left_out)
    return *EmulatedVarlen().forward(q, k, v, call, softmax_scale), None, None


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """Signature of flash-attn 2.8."""
    left_out = (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes)
    call = _call(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, *left_out)
    grads = EmulatedVarlen().backward(dout, q, k, v, out, softmax_lse, call, softmax_scale)
    for given, found in zip((dq, dk, dv), grads, strict=True):
        given.copy_(found)
    return softmax_lse


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch without FlashAttention beside a package with the interface of flash-attn."""
    flash_attn, interface = ModuleType("flash_attn"), ModuleType("flash_attn.flash_attn_interface")
    interface.__dict__.update(
        _flash_attn_varlen_forward=_flash_attn_varlen_forward,
        _flash_attn_varlen_backward=_flash_attn_varlen_backward,
    )
    flash_attn.__spec__ = interface.__spec__ = object()  # type: ignore[assignment]
    for module in (flash_attn, interface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    installed_varlen.cache_clear()
    yield
    installed_varlen.cache_clear()


def test_the_package_is_used_where_torch_has_no_kernel(package: None) -> None:
    found = find_varlen()
    assert found is not None and isinstance(found[1], PackageVarlen)
    visibility = Visibility.from_documents([*NAMED["recon clip"], *NAMED["t2i"], *NAMED["lm"]])
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, 2, len(visibility), 8, generator=generator).bfloat16() for _ in range(4)
    ]
    results = []
    for plan in (FlashPlan.build(visibility, CPU), build_plan("dense", visibility)):
        *leaves, grad = (x.clone().requires_grad_() for x in tensors)
        out = attend(*leaves, plan, scale=0.4)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x.float(), y.float(), atol=0.05, rtol=0.05)


def test_torch_comes_first(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    found = find_varlen()
    assert found is not None and not isinstance(found[1], PackageVarlen)


def test_without_any_kernel_the_error_names_both() -> None:
    if find_varlen() is not None:
        pytest.skip("a kernel is installed")
    with pytest.raises(ValueError, match="neither torch's FlashAttention nor the flash_attn"):
        installed_varlen(torch.bfloat16)
