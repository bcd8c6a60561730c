"""FlowLosses against cross_entropy in float64, its gradients, its memory."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from showo_kernels import FusedChunk, compiled_chunk, flow_losses, losses
from tests.training.test_compiled import no_compiler

FLOWS = 3


def problem(
    positions: int, vocabulary: int = 50, width: int = 16, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs in float64; hidden, weight and bias come first and ask for gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "hidden_PD": normal(positions, width).requires_grad_(),
        "weight_VD": (normal(vocabulary, width) * width**-0.5).requires_grad_(),
        "bias_V": normal(vocabulary).requires_grad_(),
        "targets_P": torch.randint(vocabulary, (positions,), generator=generator),
        "flow_P": torch.randint(FLOWS, (positions,), generator=generator),
        "weight_P": torch.rand(positions, generator=generator, dtype=torch.float64),
        "flow_scale_F": torch.rand(FLOWS, generator=generator, dtype=torch.float64),
    }


def trained(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [x for x in inputs.values() if x is not None and x.requires_grad]


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for name, x in inputs.items()
    }


def oracle(inputs: dict[str, Tensor], smoothing: float) -> tuple[Tensor, Tensor]:
    """The same two results with torch's own functions."""
    logits_PV = F.linear(inputs["hidden_PD"], inputs["weight_VD"], inputs["bias_V"])
    loss_P = F.cross_entropy(
        logits_PV, inputs["targets_P"], reduction="none", label_smoothing=smoothing
    )
    weighted_P = loss_P * inputs["weight_P"]
    sums_F = torch.stack([weighted_P[inputs["flow_P"] == flow].sum() for flow in range(FLOWS)])
    return (sums_F * inputs["flow_scale_F"]).sum(), sums_F


def assert_relative(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Largest difference relative to the largest entry."""
    error = (found.double() - wanted.double()).abs().max()
    assert error <= tolerance * wanted.abs().max(), f"{error / wanted.abs().max():.2e}"


WAYS = st.sampled_from([None, FusedChunk()])


@settings(max_examples=90, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 100), st.sampled_from([0.0, 0.1]), st.integers(0, 999), WAYS
)
def test_fp32_against_float64(
    positions: int, chunk: int, smoothing: float, seed: int, fused: FusedChunk | None
) -> None:
    exact = problem(positions, seed=seed)
    single = cast(exact, torch.float32)
    wanted, wanted_sums = oracle(exact, smoothing)
    total, sums = flow_losses(**single, label_smoothing=smoothing, chunk_rows=chunk, fused=fused)
    assert total.dtype == sums.dtype == torch.float32
    assert not sums.requires_grad
    assert_relative(total, wanted, 1e-6)
    assert_relative(sums, wanted_sums, 1e-6)
    found_grads = torch.autograd.grad(3 * total, trained(single))
    wanted_grads = torch.autograd.grad(3 * wanted, trained(exact))
    for found_grad, wanted_grad in zip(found_grads, wanted_grads, strict=True):
        assert_relative(found_grad, wanted_grad, 1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck(smoothing: float) -> None:
    inputs = problem(7, vocabulary=9, width=4)
    fixed = {name: inputs[name] for name in ("targets_P", "flow_P", "weight_P", "flow_scale_F")}

    def total(hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        return flow_losses(
            hidden_PD,
            weight_VD,
            bias_V,
            **fixed,
            label_smoothing=smoothing,
            chunk_rows=3,
        )[0]

    assert torch.autograd.gradcheck(total, trained(inputs))


def test_extreme_logits_stay_finite() -> None:
    inputs = cast(problem(20), torch.float32)
    inputs["hidden_PD"] = (inputs["hidden_PD"].detach() * 1e4).requires_grad_()
    total, _ = flow_losses(**inputs)
    grads = torch.autograd.grad(total, trained(inputs))
    assert total.isfinite() and all(grad.isfinite().all() for grad in grads)
    assert_relative(total, oracle(cast(inputs, torch.float64), 0.0)[0], 1e-6)


def test_without_bias_and_with_a_frozen_head() -> None:
    exact = problem(30)
    exact["bias_V"] = torch.zeros(50, dtype=torch.float64)
    exact["weight_VD"] = exact["weight_VD"].detach()
    wanted = torch.autograd.grad(oracle(exact, 0.0)[0], exact["hidden_PD"])[0]
    total, _ = flow_losses(**{**exact, "bias_V": None}, chunk_rows=7)
    torch.testing.assert_close(torch.autograd.grad(total, exact["hidden_PD"])[0], wanted)


def test_nothing_is_differentiated_without_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem(10)
    asked, forward = [], losses.FlowLosses.forward

    def noted(ctx: Any, *arguments: Any) -> Any:
        asked.append(ctx.needs_input_grad[:3])
        return forward(ctx, *arguments)

    monkeypatch.setattr(losses.FlowLosses, "forward", staticmethod(noted))
    with torch.no_grad():
        total, sums = flow_losses(**inputs)
    assert not total.requires_grad and asked == [(False, False, False)]
    torch.testing.assert_close(sums, oracle(inputs, 0.0)[1].detach())


def test_a_loss_that_is_not_finite_is_of_its_flow_alone_and_not_of_padding() -> None:
    """Labels of padding are of flow 0 with weight 0 and read row 0, whatever its flow."""
    inputs = cast(problem(30), torch.float32)
    wanted = flow_losses(**inputs)[1]
    with torch.no_grad():
        inputs["hidden_PD"][[3, 4]] = float("nan")
        inputs["weight_P"][4] = 0
        inputs["flow_P"][[3, 4]] = torch.tensor([1, 0])
    sums = flow_losses(**inputs)[1]
    assert sums.isfinite().tolist() == [True, False, True] and wanted.isfinite().all()


def test_no_positions_give_zero_gradients_not_missing_ones() -> None:
    inputs = cast(problem(0), torch.float32)
    total, sums = flow_losses(**inputs)
    total.backward()
    assert total.item() == 0 and sums.tolist() == [0, 0, 0]
    for leaf in trained(inputs):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape and not leaf.grad.any()


def test_the_weight_may_be_released_before_backward() -> None:
    """ZeRO-3 frees a gathered parameter after forward; what it holds then must not matter."""
    inputs = cast(problem(30), torch.float32)
    wanted = torch.autograd.grad(flow_losses(**inputs)[0], trained(inputs))
    total = flow_losses(**inputs)[0]
    inputs["weight_VD"].data.fill_(float("nan"))
    found = torch.autograd.grad(total, trained(inputs))
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


@pytest.mark.parametrize("how", ["bf16 tensors", "autocast"])
def test_bf16_products_with_fp32_softmax(how: str) -> None:
    exact = problem(200, width=64)
    inputs = cast(exact, torch.bfloat16 if how == "bf16 tensors" else torch.float32)
    for name in ("weight_P", "flow_scale_F"):
        inputs[name] = exact[name].float()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        total, sums = flow_losses(**inputs, chunk_rows=64)
    assert total.dtype == sums.dtype == torch.float32
    wanted = oracle(exact, 0.0)[0]
    assert_relative(total, wanted, 5e-3)
    grads = torch.autograd.grad(total, trained(inputs))
    wanted_grads = torch.autograd.grad(wanted, trained(exact))
    for leaf, grad, wanted_grad in zip(trained(inputs), grads, wanted_grads, strict=True):
        assert grad.dtype == leaf.dtype
        assert_relative(grad, wanted_grad, 3e-2)


def test_chunks_do_not_change_the_loss_and_twice_is_the_same_bits() -> None:
    inputs = cast(problem(100), torch.float32)
    totals = [flow_losses(**inputs, chunk_rows=n)[0] for n in (1, 33, 100)]
    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(totals[0], totals[2])
    runs = [torch.autograd.grad(flow_losses(**inputs)[0], trained(inputs)) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.slow
@no_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_passes_are_one_graph_for_all_lengths(dtype: torch.dtype) -> None:
    exact, chunk = problem(200, vocabulary=101, width=64), compiled_chunk()
    wanted = torch.autograd.grad(oracle(exact, 0.1)[0], trained(exact))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    inputs = cast(exact, dtype)
    for name in ("weight_P", "flow_scale_F"):
        inputs[name] = exact[name].float()
    for rows in (200, 64, 48):  # the last chunks have 200, 8 and 8 positions
        total, _ = flow_losses(**inputs, label_smoothing=0.1, chunk_rows=rows, fused=chunk)
        for leaf, found, grad in zip(
            trained(inputs), torch.autograd.grad(total, trained(inputs)), wanted, strict=True
        ):
            assert found.dtype == leaf.dtype
            assert_relative(found, grad, 1e-6 if dtype == torch.float32 else 3e-2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


def test_errors_name_the_value() -> None:
    inputs = problem(3)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0"):
        flow_losses(**inputs, label_smoothing=1.0)
    with pytest.raises(ValueError, match="chunk_rows is 0"):
        flow_losses(**inputs, chunk_rows=0)


MEASURE_PEAK = """
import sys, torch
import torch.nn.functional as F
from showo_kernels import flow_losses

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def peak(function):
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # forget the highest mark so far
    function()
    return status("VmHWM") - before

def fused(positions):
    total = flow_losses(hidden[:positions], weight, bias, targets[:positions],
                        flow[:positions], scale[:positions], torch.ones(3))[0]
    torch.autograd.grad(total, (hidden, weight, bias))

def plain(positions):
    loss = F.cross_entropy(F.linear(hidden[:positions], weight, bias), targets[:positions])
    torch.autograd.grad(loss, (hidden, weight, bias))

torch.set_num_threads(1)
hidden = torch.randn(4096, 64, requires_grad=True)
weight = torch.randn(58498, 64, requires_grad=True)
bias = torch.randn(58498, requires_grad=True)
targets = torch.randint(58498, (4096,))
flow, scale = targets % 3, torch.rand(4096)
fused(1), plain(1)
print(peak(lambda: fused(4096)), peak(lambda: plain(512)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_below_an_eighth_of_the_logits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    fused, plain = map(int, done.stdout.split())
    logits = 4 * 58498
    assert plain > 512 * logits, "the measurement does not see the memory it should"
    assert fused < 4096 * logits / 8, f"{fused / 2**20:.0f} MiB"


def test_rows_of_the_rounded_gradient_are_aligned_on_a_gpu() -> None:
    grad_CV = torch.empty(4, 58498, device="meta")
    rounded_CV = losses._rounded(grad_CV, torch.bfloat16)
    assert rounded_CV.shape == grad_CV.shape and rounded_CV.dtype == torch.bfloat16
    assert rounded_CV.stride() == (58560, 1)
    assert losses._rounded(torch.ones(2, 3), torch.bfloat16).stride() == (3, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_columns_that_fill_up_the_vocabulary_do_not_count_without_gradients(
    smoothing: float,
) -> None:
    """As on a GPU, where the head's rows are filled up."""
    generator = torch.Generator().manual_seed(0)
    hidden_PD, weight_VD = (torch.randn(n, 16, generator=generator) for n in (7, 50))
    targets_P = torch.randint(50, (7,), generator=generator)
    bias_V = torch.full((64,), -torch.inf)
    bias_V[:50] = 0.5
    padded_VD = F.pad(weight_VD, (0, 0, 0, 14))
    head = losses._Head(padded_VD, bias_V, smoothing, compiled_chunk(), 50)
    nothing = losses._Gradients(None, None, None)
    found_P = losses._chunk(slice(None), hidden_PD, targets_P, torch.ones(7), head, nothing)
    wanted_P = F.cross_entropy(
        hidden_PD @ weight_VD.t(), targets_P, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(found_P, wanted_P)
