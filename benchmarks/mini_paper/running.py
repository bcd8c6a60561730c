"""Run the stages of a comparison that are not done, with an estimate of the time left."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_paper.steps import Step
from showo_dist.mini import CONFIGS
from showo_dist.recipe import StageRunner


def digest(steps: Sequence[Step]) -> dict[str, str]:
    """What the files of a comparison depend on: all commands, and the configs."""
    lines = "\n".join(line for step in steps for line in step.stage.lines)
    configs = b"".join(path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml")))
    parts = {"commands": lines.encode(), "configs": configs}
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def finished(out: Path) -> frozenset[str]:
    """Names of the runs whose results exist."""
    return frozenset(path.stem for path in out.glob("results/*.json"))


def seconds_left(steps: Sequence[Step], done: Mapping[str, Mapping[str, Any]]) -> float:
    """Estimate the time left: the first estimates, corrected by the pace of the finished steps.

    Args:
        steps: all of them.
        done: records of the finished stages, by name.
    """
    finished = [step for step in steps if step.stage.name in done]
    expected = sum(step.seconds for step in finished)
    measured = sum(done[step.stage.name]["seconds"] for step in finished)
    pace = measured / expected if expected else 1.0
    return pace * sum(step.seconds for step in steps if step.stage.name not in done)


def run(out: Path, steps: Sequence[Step], after: Callable[[Step], None] = lambda _: None) -> None:
    """Run the steps that are not done, in order.

    Args:
        out: folder of the record of finished stages.
        steps: all of them.
        after: called after each one.

    Raises:
        RuntimeError: a command failed.
    """
    runner = StageRunner(out / "stages.json", lambda _: "")
    waiting = [step for step in steps if step.stage.name not in runner.done]
    before = len(steps) - len(waiting)
    print(f"== {before} of {len(steps)} stages were done before", flush=True)
    for number, step in enumerate(waiting, start=before + 1):
        minutes = seconds_left(steps, runner.done) / 60
        print(f"== {number} of {len(steps)}, about {minutes:.0f} min left", flush=True)
        runner.run(step.stage)
        after(step)
