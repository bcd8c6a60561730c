"""The comparison of optimizers: means of each, and differences by seed."""

import optimizers
import pytest


def test_differences_are_taken_by_seed() -> None:
    """Seeds differ by far more than optimizers, which only paired differences can see."""
    values = {optimizers.MUON: (1.0, 5.0, 9.0), optimizers.ADAMW: (1.5, 5.7, 9.6)}
    values[optimizers.LONGER] = (1.0, 5.0, 9.0)
    rows = [
        {"optimizer": arm, "seed": seed, "steps": 7, "loss": value}
        for arm, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    found = dict(optimizers.compared(rows))
    assert found["loss: Muon"] == pytest.approx(5.0)
    assert found["loss: Muon - AdamW, equal steps"] == pytest.approx(-0.6)
    # Student's t with two degrees of freedom: 4.3027 * 0.1 / sqrt(3).
    assert found["loss: Muon - AdamW, equal steps, ±"] == pytest.approx(0.2484, abs=1e-4)
    assert found["loss: Muon - AdamW, equal time"] == 0.0
