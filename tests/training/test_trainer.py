"""Settings of the loop that change what is logged, or how, and not what is learned."""

from pathlib import Path

from tests.training.conftest import TinyWorld, train


def test_norms_have_an_interval_of_their_own_and_fixed_orders_change_nothing(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    steps = "training.max_train_steps=4"
    plain = train(tiny_world, tmp_path / "plain", steps, "experiment.log_every=1")
    changes = ["training.deterministic=true", "experiment.log_grad_norm_every=3"]
    rare = train(tiny_world, tmp_path / "rare", steps, "experiment.log_every=2", *changes)
    assert (plain.code, rare.code) == (0, 0), rare.stderr[-3000:]
    assert sorted(rare.losses) == [2, 3, 4]
    with_norms = [s for s, line in rare.losses.items() if any("grad_norm/" in k for k in line)]
    assert with_norms == [3]
    for step, line in rare.losses.items():
        for key in ("loss", "grad_norm", "masking_rate/t2i"):
            assert line[key] == plain.losses[step][key], (step, key)
