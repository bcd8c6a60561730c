"""``showo-dist recipe FILE``: training stages one after the other, each starting from the one before.

A stage is finished when its last checkpoint is there, and is skipped then; one that was stopped goes on from
its newest checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from showo_dist.recipe.recipe import TrainingStage, read_recipe
from showo_dist.recipe.stages import Story


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="showo-dist recipe", description=__doc__)
    parser.add_argument("recipe", type=Path, help="the recipe's file")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of the recipe's own keys")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return parser


def _run(ready: TrainingStage, story: Story) -> None:
    name = ready.stage.name
    if ready.final.is_dir():
        print(f"== {name}: done before, {ready.final} is there", flush=True)
        if story.done.get(name, {}).get("configs", ready.digest) != ready.digest:
            folder = ready.config.experiment.output_dir
            print(f"== {name}: its config has changed since; remove {folder} to train it anew")
        return
    story.perform(ready.stage)
    if not ready.final.is_dir():
        raise RuntimeError(f"{name}: ended without {ready.final}")


def main(argv: Sequence[str]) -> int:
    """``showo-dist recipe FILE [--dry-run] [key=value …]``."""
    arguments = _parser().parse_args(argv)
    runs, stages = read_recipe(arguments.recipe, arguments.changes)
    if arguments.dry_run:
        for ready in stages:
            done = "done before" if ready.final.is_dir() else "to run"
            print(f"== {ready.stage.name}: {done}", *ready.stage.lines, sep="\n")
        return 0
    digests = {ready.stage.name: ready.digest for ready in stages}
    story = Story(runs / "stages.json", lambda stage: digests[stage.name])
    try:
        for ready in stages:
            _run(ready, story)
    except RuntimeError as error:
        print(f"showo-dist recipe: {error}", file=sys.stderr)
        return 1
    print(f"== all {len(stages)} stages are done; the last checkpoint is {stages[-1].final}")
    return 0
