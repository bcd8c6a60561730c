"""A run that is killed at any moment, any number of times, resumes with the results of an undisturbed run."""

import random
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from showo_dist.checkpoint import complete_checkpoints
from showo_dist.logging import read_metrics
from tests.faults.chaos import LIMIT_S, WORLD, Chaos
from tests.faults.processes import start
from tests.training.conftest import TinyWorld


def _arguments(world: TinyWorld, steps: int) -> list[str]:
    return [
        f"config={world.config}",
        f"training.max_train_steps={steps}",
        "training.batch_size_t2i=1",
        "training.batch_size_mmu=-1",
        "training.batch_size_recon=-1",
        "experiment.save_every=2",
        "experiment.keep_last=3",
        "fault.timeout_s=60",
    ]


def _tensors(run: Path) -> dict[str, bytes]:
    """All tensors of the newest checkpoint."""
    found = {}
    for path in sorted(complete_checkpoints(run)[-1].glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found.update({name: file.get_tensor(name).tobytes() for name in file.keys()})  # noqa: SIM118
    return found


def _survives(world: TinyWorld, folder: Path, kills: int, seed: int) -> Chaos:
    steps = 6 * kills
    arguments = _arguments(world, steps)
    whole = folder / "whole"
    life = start([*arguments, f"experiment.output_dir={whole}"], whole, WORLD)
    assert life.codes(LIMIT_S + steps) == [0] * WORLD, life.printed()
    reference = {line["step"]: line for line in read_metrics(whole / "metrics.jsonl")}
    batches = {"t2i": 1, "lm": 1}
    chaos = Chaos(
        arguments, folder / "killed", steps, batches, reference, random.Random(f"chaos/{seed}")
    )
    chaos.run_with_kills(kills)
    assert len(chaos.kills) == kills
    lines = read_metrics(chaos.run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1)), "each step once, in order"
    assert chaos.repeated, "no kill made a step be repeated: the test is too gentle"
    assert _tensors(chaos.run) == _tensors(whole)
    kinds = Counter(kind for kind, _ in chaos.kills)
    print(f"{kills} kills {dict(kinds)}, {chaos.repeated} steps repeated, torn: {dict(chaos.torn)}")
    return chaos


@pytest.mark.slow
def test_ten_kills(tiny_world: TinyWorld, tmp_path: Path) -> None:
    _survives(tiny_world, tmp_path, kills=10, seed=0)


@pytest.mark.chaos
def test_a_hundred_kills(tiny_world: TinyWorld, tmp_path: Path) -> None:
    chaos = _survives(tiny_world, tmp_path, kills=100, seed=1)
    assert all(chaos.torn[what] for what in ("partial", "deleted", "latest")), (
        f"too gentle: {chaos.torn}"
    )
