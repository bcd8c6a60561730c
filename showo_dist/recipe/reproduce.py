"""``showo-dist reproduce NAME``: the row of a paper in one folder, from data conversion to scores.

A recipe of ``configs/reproduce`` has conversions before its trainings, and benchmarks after them. Each step
is one of the project's own commands and runs in the folder, so that no file there needs an absolute path.
``--miniature`` runs the same steps on stand-ins. A second call resumes, and reads new results of scorers.
"""

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from braceexpand import braceexpand

from showo_data.files import claim
from showo_dist.config.loader import load_file
from showo_dist.evaluation.cli import IMAGES, output_folders
from showo_dist.evaluation.job import RECORD_NAME
from showo_dist.recipe.cli import (
    TRAIN,
    RecipeConfig,
    TrainingStage,
    as_arguments,
    flattened,
    launcher_of,
    training_stages,
)
from showo_dist.recipe.stages import Stage, StageRunner, launched, tool

CONFIGS = Path("configs/reproduce")
MINIATURE = "bases/miniature.yaml"
WORK = Path("not-comparable")  # shards, checkpoints, times, hosts: all that differs from run to run
# Keys of inputs, and what they should name.
WANTED = {
    "data.recon": "the Parquet files of RecA's reconstruction set (hub: brivangl/midjourney-v6-llava)",
    "data.llava": "LLaVA's JSON list llava_v1_5_mix665k.json (hub: liuhaotian/LLaVA-Instruct-150K)",
    "data.llava_images": "the folder of LLaVA's images",
    "weights.start": "the released weights to start from, a folder or hub id",
    "weights.vq": "the image tokenizer, a folder or hub id",
    "weights.text": "the text tokenizer, a folder or hub id",
    "weights.clip": "the CLIP tower, a folder or hub id",
    "geneval.prompts": "GenEval's evaluation_metadata.jsonl",
    "dpg.prompts": "DPG-Bench's folder of prompts, or its dpg_bench.csv",
    "wise.prompts": "WISE's folder of prompt lists",
}


@dataclass(kw_only=True)
class DataConfig:
    """Inputs that the conversions read."""

    recon: str | None = None
    """Parquet files of RecA's reconstruction set: a path, brace pattern or wildcard."""
    llava: str | None = None
    """LLaVA's JSON list of conversations."""
    llava_images: str | None = None
    """Folder that the paths of that list begin in."""


@dataclass(kw_only=True)
class WeightsConfig:
    """Folders or hub ids."""

    start: str | None = None
    """Released weights that training starts from; they are evaluated, too."""
    vq: str | None = None
    """Image tokenizer."""
    text: str | None = None
    """Text tokenizer."""
    clip: str | None = None
    """CLIP tower; models without one do not read it."""


@dataclass(kw_only=True)
class BenchmarkConfig:
    """A benchmark of `showo-dist evaluate`."""

    prompts: str | None = None
    """Its prompts, as `--prompts` of `showo-dist evaluate` takes them."""
    scorer: str | None = None
    """Shell command that scores the folder `$OUT` by the prompts `$PROMPTS`; null: run it yourself, then
    `reproduce` again. `$PYTHON` is the Python of this project."""
    samples: int | None = None
    """Images per prompt; null: those of the preset."""
    limit: int | None = None
    """Only the first so many prompts; null: all."""


@dataclass(kw_only=True)
class ReproductionConfig(RecipeConfig):
    """A recipe file of `configs/reproduce`."""

    row: str = ""
    """Model of the publication that is reproduced; with ` + RecA` that of the trained weights."""
    micro_batches: int = 1
    """Micro-batches of an update over all ranks; a number that `ranks` divides."""
    data: DataConfig = field(default_factory=DataConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    convert: dict[str, Any] = field(default_factory=dict)
    """Flow -> words of the `showo-dist shards` command that makes its shards."""
    preset: str = "reca"
    """Rounds, guidance and images per prompt of all benchmarks (`showo-dist evaluate --preset`)."""
    benchmarks: list[str] = field(default_factory=lambda: ["geneval", "dpg", "wise"])
    """Benchmarks to run, in order."""
    generation_ranks: int | None = None
    """Ranks that generate, any number; null: `ranks`. They do not change the images."""
    seed: int = 0
    """Of the generated images."""
    batch: int = 24
    """Images that are generated together."""
    geneval: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    dpg: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    wise: BenchmarkConfig = field(default_factory=BenchmarkConfig)


BENCHMARKS = tuple(
    entry.name for entry in fields(ReproductionConfig) if entry.type is BenchmarkConfig
)


@dataclass(frozen=True)
class Kit:
    """A reproduction: its steps, which run in its folder.

    Attributes:
        file: the recipe, an absolute path.
        config: its content.
        miniature: whether the inputs are stand-ins that the first step makes.
    """

    file: Path
    config: ReproductionConfig
    miniature: bool

    def steps(self) -> Iterator[Stage | TrainingStage]:
        """All steps in order; what a step needs of an earlier one is read when it is its turn."""
        if self.miniature:
            yield self._stand_ins()
        for flow, words in self.config.convert.items():
            command = tool("shards", *words, "--out", str(shards_of(flow)))
            yield Stage(f"convert {flow}", [command])
        yield from self.trainings()
        for name in self.config.benchmarks:
            yield self._generate(name)
            if scorer := getattr(self.config, name).scorer:
                for folder in self.folders(name):
                    yield self._score(name, folder, scorer)

    def trainings(self) -> list[TrainingStage]:
        """The recipe's own stages, with the shards of the conversions and the accumulation of ``ranks``.

        Raises:
            ValueError: the recipe is wrong.
        """
        recipe = self.config
        if recipe.micro_batches % recipe.ranks:
            allowed = [
                n for n in range(1, recipe.micro_batches + 1) if not recipe.micro_batches % n
            ]
            raise ValueError(
                f"ranks = {recipe.ranks}: an update has {recipe.micro_batches} micro-batches "
                f"(micro_batches), which only {', '.join(map(str, allowed))} ranks can share; "
                "generation_ranks may be any number"
            )
        self._refuse_other_updates()
        accumulation = recipe.micro_batches // recipe.ranks
        own: dict[str, Any] = {"training.gradient_accumulation_steps": accumulation}
        for flow in recipe.convert:
            own[f"dataset.params.train_{flow}_shards_path_or_url"] = pattern_of(shards_of(flow))
        changed = RecipeConfig(
            runs=recipe.runs,
            launch=recipe.launch,
            ranks=recipe.ranks,
            changes={**recipe.changes, **own},
            stages=recipe.stages,
        )
        return training_stages(self.file, changed)

    def _refuse_other_updates(self) -> None:
        """Refuse keys beside ``micro_batches`` and ``ranks`` that would change how much an update reads."""
        recipe = self.config
        given = flattened({"changes": recipe.changes, "stages": recipe.stages})
        for key in given:
            own_ranks = key.startswith("stages.") and key.endswith(".ranks")
            if own_ranks or key.endswith(".gradient_accumulation_steps"):
                raise ValueError(
                    f"{key}: an update has micro_batches = {recipe.micro_batches}, which ranks share; give "
                    "these keys instead"
                )

    def checkpoints(self) -> list[str]:
        """The weights to evaluate: those that training starts from, and the trained ones."""
        return [str(self.config.weights.start), str(self.trainings()[-1].final)]

    def folders(self, name: str) -> list[Path]:
        """Folders of a benchmark's images, one for each of the weights."""
        return output_folders(self.checkpoints(), Path(name))

    def _stand_ins(self) -> Stage:
        """Make everything that a real reproduction downloads."""
        (command,) = self.trainings()[0].stage.commands
        settings = command[command.index(TRAIN) + 1 :]
        sizes = [word for word in settings if not word.startswith("dataset.params.train_")]
        start = [sys.executable, "-m", "showo_dist.recipe.stand_ins", str(WORK / "stand-ins")]
        return Stage("stand-ins", [[*start, *sizes]])

    def _generate(self, name: str) -> Stage:
        recipe, benchmark = self.config, getattr(self.config, name)
        ranks = recipe.generation_ranks or recipe.ranks
        options = {
            "--framework": name,
            "--prompts": benchmark.prompts,
            "--out": name,
            "--preset": recipe.preset,
            "--samples": benchmark.samples,
            "--limit": benchmark.limit,
            "--seed": recipe.seed,
            "--batch": recipe.batch,
            "--vq-model": recipe.weights.vq,
            "--tokenizer": recipe.weights.text,
            "--clip-model": recipe.weights.clip,
        }
        given = [(key, str(value)) for key, value in options.items() if value is not None]
        words = [word for pair in given for word in pair]
        # The scorer runs after this step: the file of one that was stopped midway is not its last.
        words += ["--allow-unscored"] if benchmark.scorer else []
        launcher = launcher_of(self.file, recipe.launch, ranks)
        evaluate = ["showo_dist.cli", "evaluate", *self.checkpoints(), *words]
        # It looks at the images itself, and makes those that are missing.
        return Stage(name, [launched(launcher, *evaluate)], lambda: False)

    def _score(self, name: str, folder: Path, scorer: str) -> Stage:
        prompts = getattr(self.config, name).prompts
        names = {"OUT": folder.resolve(), "PROMPTS": prompts, "PYTHON": sys.executable}
        words = [f"{key}={value}" for key, value in names.items()]
        command = ["env", *words, "sh", "-c", scorer]
        return Stage(f"score {folder}", [command], lambda: self._is_scored(name, folder))

    def _is_scored(self, name: str, folder: Path) -> bool:
        """Whether the scorer's file is there and covers all images."""
        benchmark, asked = IMAGES[name], getattr(self.config, name)
        prompts = len(benchmark.read(Path(asked.prompts))[: asked.limit])
        samples = json.loads((folder / RECORD_NAME).read_text())["samples"]
        try:
            return bool(benchmark.scores(folder, prompts, samples))
        except ValueError:
            return False


def shards_of(flow: str) -> Path:
    """Folder of a flow's shards, relative to the reproduction's."""
    return WORK / "shards" / flow


def pattern_of(folder: Path) -> str:
    """The pattern of all shards of a conversion; of a conversion to come, with LAST as its last number."""
    count = len(list(folder.glob("train-*.tar")))
    return f"{folder}/train-{{000000..{f'{count - 1:06d}' if count else 'LAST'}}}.tar"


def read_kit(name: str, overrides: Sequence[str], miniature: bool) -> Kit:
    """Read ``configs/reproduce/NAME.yaml``, or the file NAME; paths that exist become absolute.

    Raises:
        ValueError: the file is wrong or not there.
    """
    file = Path(name) if name.endswith(".yaml") else CONFIGS / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        place = f"there are {known}" if known else "run this where the project's configs are"
        raise ValueError(f"{name}: no file {file}; {place}")
    layers = list(overrides)
    if miniature:
        layers = [*as_arguments(yaml.safe_load((CONFIGS / MINIATURE).read_text())), *layers]
    config = load_file(file, ReproductionConfig, layers)
    if unknown := set(config.benchmarks) - set(BENCHMARKS):
        raise ValueError(f"benchmarks: no {unknown.pop()}; there are {', '.join(BENCHMARKS)}")
    for one in config.benchmarks:
        if config.preset not in IMAGES[one].presets:
            known = ", ".join(IMAGES[one].presets)
            raise ValueError(f"preset = {config.preset}: {one} has no such one; there are {known}")
    # Read again, because conversions refer to these keys.
    absolute = [f"{k}={Path(v).absolute()}" for k, v in paths(config) if v is not None and found(v)]
    config = load_file(file, ReproductionConfig, [*layers, *absolute])
    return Kit(file.resolve(), config, miniature)


def paths(config: ReproductionConfig) -> Iterator[tuple[str, str | None]]:
    """Dotted keys of all inputs, and their values."""
    for section in (*("data", "weights"), *BENCHMARKS):
        values = vars(getattr(config, section))
        yield from ((f"{section}.{k}", v) for k, v in values.items() if f"{section}.{k}" in WANTED)


def found(value: str) -> bool:
    """Whether a path, brace pattern or wildcard names a file or folder."""
    return any(glob.glob(one) for one in braceexpand(value))


def missing(config: ReproductionConfig) -> list[str]:
    """One line for each input of the recipe that is null, or where nothing is."""
    lines = []
    for key, value in paths(config):
        section = key.partition(".")[0]
        if section in BENCHMARKS and section not in config.benchmarks:
            continue
        if value is None:
            lines.append(f"{key} is missing: give {key}=PATH, {WANTED[key]}")
        elif section != "weights" and not found(value):
            lines.append(f"{key} = {value}: nothing is there; it should be {WANTED[key]}")
    return lines


def run(kit: Kit) -> None:
    """Run all steps that are not done, in the working folder.

    Raises:
        RuntimeError: a command failed.
    """
    # No digests: the folder's own record has been compared with the configs, on any number of ranks.
    runner = StageRunner(WORK / "stages.json", lambda _: "")
    for step in kit.steps():
        runner.run(step.stage if isinstance(step, TrainingStage) else step)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="showo-dist reproduce", description=__doc__)
    parser.add_argument("name", help="a file of configs/reproduce without .yaml, or any such file")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="change the recipe's keys")
    parser.add_argument("--out", type=Path, help="folder; default: runs/reproduce/NAME")
    parser.add_argument("--dry-run", action="store_true", help="print commands, hours and disk")
    parser.add_argument("--gpu", default="h100", help="GPU of the printed hours (%(default)s)")
    parser.add_argument(
        "--miniature", action="store_true", help="all steps on stand-ins, in minutes on a CPU"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """``showo-dist reproduce NAME [--out DIR] [--dry-run] [--miniature] [key=value …]``.

    Raises:
        ValueError: the recipe, an input or a scorer's result file is wrong, or the folder was begun with
            another recipe or version of the project.
    """
    arguments = _parser().parse_intermixed_args(argv)
    kit = read_kit(arguments.name, arguments.changes, arguments.miniature)
    name = Path(arguments.name).stem + ("-miniature" if kit.miniature else "")
    out = (arguments.out or Path("runs/reproduce") / name).absolute()
    lacking = [] if kit.miniature else missing(kit.config)
    if arguments.dry_run:
        from showo_dist.recipe.estimate import show_plan

        names = [f"{key}={key.upper()}" for key, value in paths(kit.config) if value is None]
        kit = read_kit(arguments.name, [*arguments.changes, *names], arguments.miniature)
        return show_plan(kit, out, arguments.gpu, lacking)
    if lacking:
        raise ValueError("\n".join(lacking))
    kit.trainings()  # before anything is written: a mistake in their configs is an error
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    from showo_dist.recipe.reproduction import settings, write_reproduction

    claim(WORK, "begun-with.json", settings(kit), "a reproduction")
    if kit.miniature:
        # Sums depend on the number of threads, and torchrun gives several ranks one thread each.
        os.environ["OMP_NUM_THREADS"] = "1"
    try:
        run(kit)
    except RuntimeError as error:
        print(f"showo-dist reproduce: {error}", file=sys.stderr)
        return 1
    print(f"== {out / write_reproduction(kit)}")
    return 0
