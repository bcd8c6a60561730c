"""Command lines of the generation tools: options, config keys, the model, prompts and input images."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data.text import is_apple_double, parse_json, plain_text, read_lines
from showo_dist.config import TrainConfig, load_file
from showo_dist.config.loader import OVERRIDE, parse_arguments
from showo_dist.config.rules import check
from showo_dist.generation.conversation import Part
from showo_dist.generation.edits import read_image
from showo_dist.generation.networks import read_model_config
from showo_dist.generation.output import Album
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import add_sampling_options, sampling_options
from showo_dist.logging.wandb_run import WandbRun

# Published command lines join several texts with this.
SEPARATOR = " *** "
# Options that are short for config keys.
_KEYS = {
    "steps": "training.generation_timesteps",
    "guidance": "training.guidance_scale",
    "temperature": "training.generation_temperature",
    "schedule": "training.mask_schedule",
    "sampler": "training.generation_sampler",
    "top_p": "training.generation_top_p",
    "remask": "training.generation_remask",
    "guidance_schedule": "training.guidance_schedule",
    "guidance_interval": "training.guidance_interval",
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
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all tools share."""
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
    """Add the options of image generation."""
    add_sampling_options(made)
    made.add_argument("--schedule", help="cosine, linear, sigmoid, pow2 …")
    made.add_argument("--seeds", type=int, nargs="+", help="every image once per seed; default 0")


@dataclass(frozen=True)
class Request:
    """A parsed command line.

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
        """Parse a command line and load the model's config.

        Raises:
            ValueError: names the wrong key or word, or what is missing.
        """
        arguments = made.parse_intermixed_args(argv)
        models = [word for word in arguments.words if not OVERRIDE.fullmatch(word)]
        if len(models) > 1:
            raise ValueError(f"one model at most, given were {', '.join(models)}")
        words = [word for word in arguments.words if OVERRIDE.fullmatch(word)]
        file, overrides = parse_arguments(words)
        overrides += _as_keys(arguments)
        config, model = _config_and_model(file, models[0] if models else None, overrides)
        check(config, for_training=False)
        sampling_options(config).changed(arguments)  # refuses options without effect
        seeds = arguments.seeds or config.inference.seeds
        if min(seeds, default=0) < 0:
            raise ValueError(f"--seeds {min(seeds)}: expected 0 or more")
        return cls(name, arguments, config, model)

    @property
    def seeds(self) -> list[int]:
        given: list[int] | None = self.arguments.seeds
        return given or self.config.inference.seeds

    @property
    def batch(self) -> int:
        return self.config.training.batch_size or _BATCH

    def load(self) -> Pipeline:
        """Load the model."""
        return Pipeline.load(
            self.model,
            config=self.config,
            device=self.arguments.device,
            precision=self.config.inference.precision,
        )

    def album(self, lines: str, settings: dict[str, Any]) -> Album:
        """Create the folder of the results; ``settings`` are recorded beside the command and the model."""
        folder = self.arguments.out or Path("generated") / self.name
        common = {"command": self.name, "model": self.model, **settings}
        wandb = self._wandb(folder) if self.arguments.wandb else None
        return Album(folder, lines, common, wandb)

    def sampling(self) -> dict[str, Any]:
        """Return the sampler settings for the record."""
        schedule = self.config.training.mask_schedule
        return sampling_options(self.config).record() | {"schedule": schedule}

    def _wandb(self, folder: Path) -> WandbRun:
        folder.mkdir(parents=True, exist_ok=True)
        wandb, experiment = self.config.wandb, self.config.experiment
        return WandbRun(
            folder,
            wandb.mode,
            print_error,
            project=experiment.project,
            name=self.name,
            entity=wandb.entity,
        )


def _as_keys(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the ``key=value`` that the given options are short for."""
    given = ((key, getattr(arguments, name, None)) for name, key in _KEYS.items())
    return (f"{key}={value}" for key, value in given if value is not None)


def _config_and_model(
    file: str | None, model: str | None, overrides: list[str]
) -> tuple[TrainConfig, str]:
    """Return the config and the weights that a file, a model or both name; ``overrides`` take precedence."""
    if file is None and model is not None:
        return read_model_config(model, overrides), model
    config = load_file(file, TrainConfig, overrides, check=False)
    model = model or config.model.showo.pretrained_model_path
    if model is None:
        raise ValueError("no model: name a checkpoint, a released folder or a hub id")
    if file is None:
        config = read_model_config(model, overrides)
    return config, model


def print_error(line: str) -> None:
    """Print one line on stderr."""
    print(line, file=sys.stderr, flush=True)


class Failures:
    """Reports unusable inputs, so that the rest can be processed.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: Exception) -> None:
        """Report an error on stderr and count it."""
        self.count += 1
        print_error(str(error))

    def image(self, path: Path) -> Image.Image | None:
        """Read an image; None, and a report, when it cannot be read."""
        try:
            return read_image(path)
        except ValueError as error:
            self.add(error)
            return None

    @property
    def exit_code(self) -> int:
        """1 when an input was left out, else 0."""
        return 1 if self.count else 0


def refuse_beside(arguments: argparse.Namespace, named: str, *others: str) -> None:
    """Refuse options that say a second time what ``named`` says.

    Raises:
        ValueError: one is given beside it.
    """
    for other in others:
        if getattr(arguments, named) and getattr(arguments, other):
            words = [f"--{name.replace('_', '-')}" for name in (named, other)]
            raise ValueError(f"{words[0]} and {words[1]}: only one of them can be given")


def split_texts(texts: Sequence[str]) -> list[str]:
    """Split texts that hold several texts, joined by :data:`SEPARATOR`."""
    return [part.strip() for text in texts for part in text.split(SEPARATOR)]


def one_each(values: list[str], count: int, what: str) -> list[str]:
    """Return ``count`` values from one for all items or one each.

    Raises:
        ValueError: another number of values.
    """
    if len(values) not in (1, count):
        raise ValueError(f"{len(values)} values of {what} for {count}: give one, or one each")
    return values * count if len(values) == 1 else values


def required(value: str | None, option: str) -> list[str]:
    """Return a list of the config's value for an option.

    Raises:
        ValueError: there is none; names the option.
    """
    if value is None:
        raise ValueError(f"{option} is missing")
    return [value]


def read_prompts(path: str | Path) -> list[str]:
    """Read one prompt per line, without empty lines.

    Raises:
        ValueError: the file cannot be read, or holds no prompt.
    """
    try:
        lines = read_lines(path)
    except OSError as error:
        raise ValueError(f"{path}: prompts cannot be read ({error})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: holds no prompt")
    return prompts


def read_parts(path: str | Path) -> list[list[tuple[str, str]]]:
    """Read prompts of texts and images: per line a JSON list of ``{"text": …}`` and ``{"image": PATH}``.

    Raises:
        ValueError: names the file and the invalid line.
    """
    rows = []
    for number, line in enumerate(read_prompts(path), start=1):
        try:
            row = [item for entry in parse_json(line) for item in entry.items()]
            for _, value in row:
                if value != "":
                    plain_text(value)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path}: prompt {number} is not a JSON list of texts and images ({error})"
            ) from None
        if not row or any(kind not in ("text", "image") for kind, _ in row):
            raise ValueError(
                f'{path}: prompt {number}: expected {{"text": …}} and {{"image": PATH}}'
            )
        rows.append(row)
    return rows


def read_edits(path: str | Path) -> list[tuple[Path, str]]:
    """Read edits: per line a JSON object with ``source``, an image beside the file, and ``instruction``.

    Raises:
        ValueError: names the file, and the line and key that is wrong.
    """
    edits = []
    for number, line in enumerate(read_prompts(path), start=1):
        try:
            entry = parse_json(line)
            source, instruction = (plain_text(entry[key]) for key in ("source", "instruction"))
        except KeyError as error:
            raise ValueError(f"{path}: edit {number} has no {error}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: edit {number} is not a JSON object of texts source and instruction ({error})"
            ) from None
        edits.append((Path(path).parent / source, instruction))
    return edits


def open_parts(row: Sequence[tuple[str, str]]) -> list[Part]:
    """Read the images of such a prompt.

    Raises:
        ValueError: one cannot be read.
    """
    return [read_image(value) if kind == "image" else value for kind, value in row]


def image_paths(names: Iterable[str]) -> list[Path]:
    """Return image files; a folder stands for the images in it, sorted by name.

    Raises:
        ValueError: there is no image at all.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            images = (p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            paths += sorted(p for p in images if not is_apple_double(p))
        else:
            paths.append(path)
    if not paths:
        raise ValueError("no image is named")
    return paths
