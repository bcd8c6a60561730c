"""The command lines of the generation tools: one model, its config with changes, one folder for results."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from showo_dist.config import TrainConfig, load_file
from showo_dist.config.sources import OVERRIDE, parse_arguments
from showo_dist.generation.loading import read_model_config, sampling_options
from showo_dist.generation.output import Album
from showo_dist.generation.pipeline import Pipeline
from showo_dist.logging.wandb_run import WandbRun

# Published command lines put several texts into one.
SEPARATOR = " *** "
# Options that are other names of config keys.
_KEYS = {
    "steps": "training.generation_timesteps",
    "guidance": "training.guidance_scale",
    "temperature": "training.generation_temperature",
    "schedule": "training.mask_schedule",
    "batch": "training.batch_size",
    "samples": "inference.samples",
    "precision": "inference.precision",
    "max_new_tokens": "inference.max_new_tokens",
    "top_k": "inference.top_k",
    "answer_temperature": "inference.temperature",
    "vq_model": "model.vq_model.pretrained_model_path",
    "tokenizer": "model.showo.tokenizer_path",
    "clip_model": "model.clip_model_name",
}
_BATCH = 8


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """A parser with what all tools share."""
    made = argparse.ArgumentParser(f"showo-dist {name}", description=text)
    made.add_argument(
        "words",
        nargs="*",
        metavar="MODEL | config=FILE | key=value",
        help="checkpoint or export of ours, released folder or hub id; config file; config keys, "
        "also by their published names",
    )
    made.add_argument("--out", type=Path, help=f"folder for the results; default: generated/{name}")
    made.add_argument("--batch", type=int, help=f"images or questions at a time; default {_BATCH}")
    made.add_argument("--device", help="default: the GPU if there is one")
    made.add_argument("--precision", choices=["auto", "bf16", "fp32"], help="of the transformer")
    made.add_argument("--vq-model", help="image tokenizer instead of the config's")
    made.add_argument("--tokenizer", help="text tokenizer instead of the config's")
    made.add_argument("--clip-model", help="CLIP tower instead of the config's")
    made.add_argument("--wandb", action="store_true", help="also log the images to wandb")
    return made


def add_sampling(made: argparse.ArgumentParser) -> None:
    """Options of generation."""
    made.add_argument("--steps", type=int, help="rounds per image; default: the config's")
    made.add_argument("--guidance", type=float, help="w of guidance, 0: none")
    made.add_argument("--temperature", type=float, help="of the noise on the confidences")
    made.add_argument("--schedule", help="cosine, linear, sigmoid, pow2 …")
    made.add_argument("--seeds", type=int, nargs="+", help="every image once per seed; default 0")


@dataclass(frozen=True)
class Request:
    """A read command line.

    Attributes:
        name: of the command.
        arguments: its options.
        config: of the model, with the changes of the command line.
        model: folder or hub id of the weights.
    """

    name: str
    arguments: argparse.Namespace
    config: TrainConfig
    model: str

    @classmethod
    def read(cls, name: str, made: argparse.ArgumentParser, argv: Sequence[str]) -> "Request":
        """Read a command line.

        Raises:
            ValueError: names the key or word that is wrong, or what is missing.
        """
        arguments = made.parse_intermixed_args(argv)
        models = [word for word in arguments.words if not OVERRIDE.fullmatch(word)]
        if len(models) > 1:
            raise ValueError(f"one model at most, given were {', '.join(models)}")
        words = [word for word in arguments.words if OVERRIDE.fullmatch(word)]
        file, overrides = parse_arguments(words)
        overrides += _as_keys(arguments)
        config, model = _config_and_model(file, models[0] if models else None, overrides)
        config.check(for_training=False)
        return cls(name, arguments, config, model)

    @property
    def seeds(self) -> list[int]:
        given: list[int] | None = self.arguments.seeds
        return given or self.config.inference.seeds

    @property
    def batch(self) -> int:
        return self.config.training.batch_size or _BATCH

    def load(self) -> Pipeline:
        """The model, ready."""
        return Pipeline.load(
            self.model,
            config=self.config,
            device=self.arguments.device,
            precision=self.config.inference.precision,
        )

    def album(self, lines: str, settings: dict[str, Any]) -> Album:
        """The folder for the results; ``settings`` go beside the command and the model."""
        folder = self.arguments.out or Path("generated") / self.name
        common = {"command": self.name, "model": self.model, **settings}
        wandb = self._wandb(folder) if self.arguments.wandb else None
        return Album(folder, lines, common, wandb)

    def sampling(self) -> dict[str, Any]:
        """How images are generated, for the record."""
        options = asdict(sampling_options(self.config))
        return {**options, "schedule": self.config.training.mask_schedule}

    def _wandb(self, folder: Path) -> WandbRun:
        folder.mkdir(parents=True, exist_ok=True)
        wandb, experiment = self.config.wandb, self.config.experiment
        return WandbRun(
            folder,
            wandb.mode,
            complain,
            project=experiment.project,
            name=self.name,
            entity=wandb.entity,
        )


def complain(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def split_texts(texts: Sequence[str]) -> list[str]:
    """Several texts, each of which may hold several."""
    return [part.strip() for text in texts for part in text.split(SEPARATOR)]


def one_each(values: list[str], count: int, what: str) -> list[str]:
    """A value per item from one for all or one each.

    Raises:
        ValueError: another number of values.
    """
    if len(values) not in (1, count):
        raise ValueError(f"{len(values)} values of {what} for {count}: give one, or one each")
    return values * count if len(values) == 1 else values


def _as_keys(arguments: argparse.Namespace) -> Iterator[str]:
    given = ((key, getattr(arguments, name, None)) for name, key in _KEYS.items())
    return (f"{key}={value}" for key, value in given if value is not None)


def _config_and_model(
    file: str | None, model: str | None, overrides: list[str]
) -> tuple[TrainConfig, str]:
    """The config and the weights that a file, a model or both name; what is said last wins."""
    if file is None and model is not None:
        return read_model_config(model, overrides), model
    config = load_file(file, TrainConfig, overrides, check=False)
    model = model or config.model.showo.pretrained_model_path
    if model is None:
        raise ValueError("no model: name a checkpoint, a released folder or a hub id")
    if file is None:
        config = read_model_config(model, overrides)
    return config, model
