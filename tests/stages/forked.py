"""Training on real ranks that are forks of a server: no seconds of imports for each run."""

import json
from pathlib import Path

from tests.faults.processes import start
from tests.training.conftest import Outcome, TinyWorld

LIMIT_S = 400.0  # also where other work has most of the machine


def train_forked(world: TinyWorld, run: Path, *changes: str, ranks: int = 1) -> Outcome:
    """As :func:`tests.training.conftest.train`; all that was printed is in ``stdout``."""
    run.parent.mkdir(parents=True, exist_ok=True)
    arguments = [f"config={world.config}", f"experiment.output_dir={run}", *changes]
    life = start(arguments, run, ranks)
    codes = life.codes(LIMIT_S)
    outcome = Outcome(max(codes), life.printed(), "", run)
    metrics = run / "metrics.jsonl"
    if metrics.is_file():
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        outcome.losses = {line["step"]: line for line in lines}
    return outcome
