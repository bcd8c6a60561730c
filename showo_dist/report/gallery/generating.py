"""The images of a checkpoint, and every round of some of them."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from showo_dist.evaluation.asking import write_json
from showo_dist.evaluation.generating import generator, sampler_of
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import SamplingOptions
from showo_dist.report.gallery.runs import Checkpoint

_ROUNDS = "rounds.json"
_QUALITY = 88  # of WebP: a frame of 512 px is some 40 kB
_LOSSLESS_PX = 128  # smaller images are kept pixel by pixel


@dataclass(frozen=True)
class Settings:
    """What every checkpoint is asked to generate.

    Attributes:
        prompts: the texts, one image each.
        seed: with the number of the prompt, it decides all random numbers.
        steps, guidance: instead of the checkpoint's own, where given.
        frames: of so many prompts, every round is kept.
        vq_model, tokenizer, clip_model: networks instead of those of the checkpoint's config, where given.
    """

    prompts: tuple[str, ...]
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    frames: int = 2
    vq_model: str | None = None
    tokenizer: str | None = None
    clip_model: str | None = None

    def options(self, own: SamplingOptions) -> SamplingOptions:
        """The checkpoint's own options where nothing else was asked for."""
        return SamplingOptions(
            steps=own.steps if self.steps is None else self.steps,
            guidance=own.guidance if self.guidance is None else self.guidance,
            temperature=own.temperature,
            schedule=own.schedule,
        )


@dataclass(frozen=True)
class Generated:
    """What a checkpoint generated, as files.

    Attributes:
        checkpoint: which one.
        folder: of the files, relative to the page.
        images: one per prompt.
        frames: of the first prompts, one file per round.
        masks: likewise, which codes are still masked after the round: a string of 0 and 1, row by row.
        side: codes in a row.
    """

    checkpoint: Checkpoint
    folder: str
    images: list[str]
    frames: list[list[str]]
    masks: list[list[str]]
    side: int


def generated_by(
    checkpoint: Checkpoint, settings: Settings, out: Path, device: str | None, batch: int
) -> Generated:
    """Generate, unless it was generated before with the same settings.

    The folder of a checkpoint's images appears when all of them are there.

    Raises:
        ValueError, OSError: the checkpoint cannot be read.
    """
    name = checkpoint.digest(asdict(settings))
    folder = out / "images" / name
    if not (folder / _ROUNDS).is_file():
        pipeline = Pipeline.load(
            checkpoint.folder,
            device=device,
            vq_model=settings.vq_model,
            tokenizer=settings.tokenizer,
            clip_model=settings.clip_model,
        )
        aside = folder.with_name(f".{name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _generate(pipeline, settings, aside, batch)
        aside.rename(folder)
    rounds = json.loads((folder / _ROUNDS).read_text())
    relative = f"images/{name}"
    count = len(settings.prompts)
    frames = [
        [f"{relative}/{_frame_name(place, number)}" for number in range(len(masks))]
        for place, masks in enumerate(rounds["masks"])
    ]
    images = [f"{relative}/{_image_name(place)}" for place in range(count)]
    return Generated(checkpoint, relative, images, frames, rounds["masks"], rounds["side"])


def _generate(pipeline: Pipeline, settings: Settings, folder: Path, batch: int) -> None:
    masks: list[list[str]] = [[] for _ in settings.prompts[: settings.frames]]
    options = settings.options(pipeline.options)
    for start in range(0, len(settings.prompts), batch):
        prompts = settings.prompts[start : start + batch]
        sampler = sampler_of(pipeline, prompts, options)
        noise = [
            generator(settings.seed, (start + n,), pipeline.device) for n in range(len(prompts))
        ]
        kept = max(0, min(len(prompts), settings.frames - start))
        codes_BN = sampler.codes_BN
        for number, codes_BN in enumerate(sampler.rounds(noise)):
            last = number == options.steps - 1
            hidden_BN = sampler.codes_BN == pipeline.vocabulary.codebook
            for place in range(kept):
                _save(pipeline, codes_BN[place], folder / _frame_name(start + place, number))
                masks[start + place].append(_bits(hidden_BN[place] & (not last)))
        for place in range(len(prompts)):
            _save(pipeline, codes_BN[place], folder / _image_name(start + place))
    write_json(folder / _ROUNDS, {"side": pipeline.side, "masks": masks})


def _bits(hidden_N: Tensor) -> str:
    return "".join("01"[hidden] for hidden in hidden_N.tolist())


def _save(pipeline: Pipeline, codes_N: Tensor, path: Path) -> None:
    (image,) = pipeline.decode(codes_N[None])
    save_web(image, path)


def save_web(image: Image.Image, path: Path) -> None:
    """A WebP file, small ones without loss."""
    image.save(path, quality=_QUALITY, lossless=max(image.size) <= _LOSSLESS_PX)


def _image_name(place: int) -> str:
    return f"{place:03d}.webp"


def _frame_name(place: int, number: int) -> str:
    return f"{place:03d}-round-{number + 1:03d}.webp"
