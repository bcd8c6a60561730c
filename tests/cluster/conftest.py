"""Training on rehearsed hosts; skipped, with the reason, where hosts cannot be created."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from showo_dist.logging.records import read_metrics
from showo_launch.rehearsal import missing_requirement
from tests.cluster.commands import LIMIT_S
from tests.training.conftest import TinyWorld, tiny_world

__all__ = ["tiny_world"]

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder, and skip them where hosts cannot be created."""
    missing = missing_requirement(slurm=True)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(autouse=True)
def from_the_project_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands in the project's folder, with the environment's programs on the PATH."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def losses(run: Path) -> dict[int, float]:
    """The loss of every step in a run's metrics."""
    return {line["step"]: line["loss"] for line in read_metrics(run / "metrics.jsonl")}


def arguments(world: TinyWorld, run: Path, steps: int, *changes: str) -> list[str]:
    """The arguments of a short training run."""
    settings = [f"config={world.config}", f"experiment.output_dir={run}"]
    return [*settings, f"training.max_train_steps={steps}", *changes]


def train_alone(world: TinyWorld, run: Path, steps: int, ranks: int) -> dict[int, float]:
    """The losses of one process, without hosts, that computes the micro-batches of all ``ranks`` in turn."""
    accumulate = f"training.gradient_accumulation_steps={ranks}"
    words = [sys.executable, "-m", "showo_dist.train", *arguments(world, run, steps, accumulate)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, env=environment, capture_output=True, timeout=LIMIT_S)
    return losses(run)
