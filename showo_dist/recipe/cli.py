"""``showo-dist recipe FILE``: run training stages in order, each starting from the one before.

A stage is finished when its last checkpoint exists, and is then skipped. A stage that was stopped resumes
from its newest checkpoint.
"""

import argparse
import difflib
import hashlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from showo_dist.config import TrainConfig, load, to_yaml
from showo_dist.config.loader import load_file
from showo_dist.config.rules import check
from showo_dist.recipe.stages import Stage, StageRunner, launched

TRAIN = "showo_dist.train"
_NAME = re.compile(r"[\w-]+")


@dataclass(kw_only=True)
class StageConfig:
    """One stage of a recipe file."""

    config: str = ""
    """Training config; relative to the recipe file."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Config keys, dotted or nested, and their values; null keeps the config's value."""
    init_from: str | None = None
    """Weights to start from; absent: those of the stage before, and for the first stage as in its config."""
    launch: str | None = None
    """Launcher of this stage; null: as in the recipe."""
    ranks: int | None = None
    """Number of ranks of this stage; null: as in the recipe."""


@dataclass(kw_only=True)
class RecipeConfig:
    """A recipe file."""

    runs: str = ""
    """Folder of the runs; each stage writes to a subfolder with its name."""
    launch: str = "deepspeed --quiet --num_gpus {ranks} --module"
    """Command before the module's name; `{ranks}` is replaced by the number of ranks."""
    ranks: int = 1
    """Number of ranks."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Like a stage's `changes`, for all stages; a stage's own take precedence."""
    stages: dict[str, Any] = field(default_factory=dict)
    """Stages in order: name -> settings (`StageConfig`)."""


@dataclass(frozen=True)
class TrainingStage:
    """A stage with its config resolved.

    Attributes:
        stage: name and command.
        config: training config.
        digest: SHA-256 of the config.
        final: its last checkpoint.
    """

    stage: Stage
    config: TrainConfig
    digest: str
    final: Path


def read_recipe(file: Path, overrides: Sequence[str] = ()) -> tuple[Path, list[TrainingStage]]:
    """Read a recipe and check the configs of all its stages.

    Args:
        file: the recipe.
        overrides: ``key=value`` of the recipe's own keys, as ``stages.NAME.changes.training.seed=1``.

    Returns:
        The folder of the runs, and the stages.

    Raises:
        ValueError: the file or a stage is wrong; one line per problem names it.
    """
    recipe = load_file(file, RecipeConfig, overrides)
    return Path(recipe.runs), training_stages(file, recipe)


def training_stages(file: Path, recipe: RecipeConfig) -> list[TrainingStage]:
    """Resolve and check the configs of all stages of a recipe.

    Args:
        file: the recipe's; paths of configs are relative to it.
        recipe: its content.

    Raises:
        ValueError: as :func:`read_recipe`.
    """
    if not recipe.runs or not recipe.stages:
        raise ValueError(f"{file}: a recipe needs runs (a folder) and stages")
    stages = list(_stages(file, recipe))
    problems = [line for ready in stages for line in _problems(file, ready)]
    if problems:
        raise ValueError("\n".join(problems))
    return stages


def _problems(file: Path, ready: TrainingStage) -> list[str]:
    """One line for each problem that training would report."""
    try:
        check(ready.config)
    except ValueError as error:
        return [f"{file}: stage {ready.stage.name}: {line}" for line in str(error).splitlines()]
    return []


def _stages(file: Path, recipe: RecipeConfig) -> Iterator[TrainingStage]:
    before: Path | None = None
    for name, values in recipe.stages.items():
        settings = _stage_config(file, str(name), values)
        source = settings.init_from if "init_from" in values else before
        ready = _ready(file, recipe, str(name), settings, source)
        yield ready
        before = ready.final


def _stage_config(file: Path, name: str, values: Any) -> StageConfig:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{file}: stage {name!r}: expected letters, digits, _ and - in its name")
    if not isinstance(values, dict) or not values.get("config"):
        raise ValueError(f"{file}: stage {name}: expected a section with config, found {values!r}")
    known = [entry.name for entry in fields(StageConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{file}: stage {name}: unknown key {key}; nearest known: {near}")
    given = {key: value for key, value in values.items() if value is not None}
    try:
        settings = OmegaConf.merge(OmegaConf.structured(StageConfig), given)
        return cast(StageConfig, OmegaConf.to_object(settings))
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file}: stage {name}: {given}: {reason}") from None


def _ready(
    file: Path, recipe: RecipeConfig, name: str, settings: StageConfig, source: str | Path | None
) -> TrainingStage:
    wanted = flattened(recipe.changes) | flattened(settings.changes)
    wanted["experiment.output_dir"] = f"{recipe.runs}/{name}"
    if source is not None:
        wanted["experiment.init_from"] = str(source)
    config_file = _beside(file, settings.config)
    arguments = [f"config={config_file}", *as_arguments(wanted)]
    try:
        config = load(arguments, TrainConfig, check=False)
    except ValueError as error:
        raise ValueError(f"{file}: stage {name}: {error}") from None
    launcher = launcher_of(file, settings.launch or recipe.launch, settings.ranks or recipe.ranks)
    digest = hashlib.sha256(to_yaml(config).encode()).hexdigest()
    run, steps = Path(config.experiment.output_dir), config.training.max_train_steps
    final = run / f"checkpoint-{steps:06d}"
    stage = Stage(name, [launched(launcher, TRAIN, *arguments)], final=final)
    return TrainingStage(stage, config, digest, final)


def _beside(file: Path, name: str) -> Path:
    """Join a path to the recipe's folder and remove ``folder/..``, so that commands stay readable."""
    path = file.parent / name
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] not in ("..", "/"):
            parts.pop()
        else:
            parts.append(part)
    return Path(*parts)


def launcher_of(file: Path, launch: str, ranks: int) -> list[str]:
    """The words of a recipe's ``launch`` for a number of ranks.

    Raises:
        ValueError: it is no command, or asks for anything but ``{ranks}``.
    """
    try:
        words = shlex.split(launch.format(ranks=ranks))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{file}: launch = {launch!r}: only {{ranks}} is filled in ({error})"
        ) from None
    if not words:
        raise ValueError(f"{file}: launch is empty: expected a command, as `torchrun … -m`")
    return words


def as_arguments(changes: Mapping[str, Any]) -> list[str]:
    """The ``key=value`` arguments that make the same changes to a config."""
    return [f"{key}={_text(value)}" for key, value in flattened(changes).items()]


def flattened(changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten sections to dotted keys and their values; nulls are left out."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    """Format a value for ``key=value``."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="showo-dist recipe", description=__doc__)
    parser.add_argument("recipe", type=Path, help="recipe file")
    parser.add_argument(
        "changes", nargs="*", metavar="key=value", help="change the recipe's own keys"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """``showo-dist recipe FILE [--dry-run] [key=value …]``."""
    arguments = _parser().parse_intermixed_args(argv)
    runs, stages = read_recipe(arguments.recipe, arguments.changes)
    if arguments.dry_run:
        for ready in stages:
            done = "done before" if ready.final.is_dir() else "to run"
            print(f"== {ready.stage.name}: {done}", *ready.stage.lines, sep="\n")
        return 0
    digests = {ready.stage.name: ready.digest for ready in stages}
    runner = StageRunner(runs / "stages.json", lambda stage: digests[stage.name])
    try:
        for ready in stages:
            runner.run(ready.stage)
    except RuntimeError as error:
        print(f"showo-dist recipe: {error}", file=sys.stderr)
        return 1
    print(f"== all {len(stages)} stages are done; last checkpoint: {stages[-1].final}")
    return 0
