"""Compare two trained models; errors are fractions of each tensor's largest entry."""

import numpy as np
import torch
from torch import Tensor

from tests.single_pass.case import Report
from tests.single_pass.oracle import Outcome


def _largest_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def assert_weights(report: Report, wanted: Outcome, tolerance: float) -> None:
    """Fail if a parameter is off by more than ``tolerance``."""
    assert report.weights.keys() == wanted.weights.keys()
    for name, tensor in wanted.weights.items():
        error = _largest_error(torch.from_numpy(report.weights[name]), tensor)
        assert error <= tolerance, f"{name} is off by {error:.1e}"


def assert_updates(report: Report, wanted: Outcome, tolerance: float) -> None:
    """Compare the changes made by training, a much finer test than comparing the weights."""
    for name, tensor in wanted.weights.items():
        found = torch.from_numpy(report.weights[name] - report.start[name])
        error = _largest_error(found, tensor - wanted.start[name])
        assert error <= tolerance, f"the update of {name} is off by {error:.1e}"


def assert_same(
    report: Report, wanted: Outcome, weights: float = 1e-5, updates: float = 1e-3
) -> None:
    """Compare weights, updates, flow means, and the loss and gradient norm of every step."""
    np.testing.assert_allclose(report.totals, wanted.totals, rtol=1e-5)
    np.testing.assert_allclose(report.grad_norms, wanted.grad_norms, rtol=1e-5)
    assert report.means.keys() == wanted.means.keys()
    for flow, mean in wanted.means.items():
        np.testing.assert_allclose(report.means[flow], mean, rtol=1e-5)
    assert_weights(report, wanted, weights)
    assert_updates(report, wanted, updates)
