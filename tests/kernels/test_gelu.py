"""GELU by tanh against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from showo_kernels import TanhGELU
from showo_kernels.cpu import compiled
from tests.kernels.layouts import NO_NATIVE


def run(activation: TanhGELU | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope; of torch's when there is no ``activation``."""
    x = x.detach().requires_grad_()
    y = F.gelu(x, approximate="tanh") if activation is None else activation(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2**-8), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("native", [True, False])
def test_values_and_slopes(
    native: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(compiled, "obstacle", lambda: "not here")
    elif NO_NATIVE is not None:
        pytest.skip(NO_NATIVE)
    # More than one thread's share, over everything that changes and far beyond.
    x = torch.cat([torch.linspace(-12, 12, 40_001), torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4])])
    x = x.to(dtype)
    for found, wanted in zip(run(TanhGELU(), x), run(None, x.double()), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=2 * tolerance)


def test_other_layouts_and_what_is_not_a_number() -> None:
    x = torch.randn(6, 5, 4)
    value, slope = run(TanhGELU(), x)
    turned_value, turned_slope = run(TanhGELU(), x.transpose(0, 2))
    assert torch.equal(turned_value, value.transpose(0, 2))
    assert torch.equal(turned_slope, slope.transpose(0, 2))
    assert all(torch.isnan(y).all() for y in run(TanhGELU(), torch.full((20,), float("nan"))))
    assert TanhGELU()(torch.zeros(0, 3)).shape == (0, 3)
