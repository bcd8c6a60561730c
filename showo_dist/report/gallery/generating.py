"""Generate the images of a checkpoint, and keep every round of some of them."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from showo_data.files import folder_aside
from showo_dist.evaluation.job import write_json
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.samplers import ONE_BY_ONE, SAMPLERS
from showo_dist.generation.sampling import SamplingOptions
from showo_dist.report.gallery.checkpoints import Checkpoint
from showo_dist.runtime.numerics import image_generator

_ROUNDS = "rounds.json"
_QUALITY = 88  # of WebP: a frame of 512 px takes about 40 kB
_LOSSLESS_PX = 128  # images up to this size are compressed without loss


@dataclass(frozen=True)
class Settings:
    """Settings of the generation, the same for every checkpoint.

    Attributes:
        prompts: the texts, one image each.
        seed: with the index of the prompt, it decides all random numbers.
        steps: rounds per image; None: the checkpoint's own.
        guidance: weight of guidance; None: the checkpoint's own.
        frames: number of prompts whose rounds are all kept.
        vq_model: image tokenizer; None: the one of the checkpoint's config.
        tokenizer: text tokenizer, likewise.
        clip_model: CLIP tower, likewise.
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
        """The checkpoint's own options, changed as the settings say.

        Raises:
            ValueError: a number of rounds is given, and the checkpoint's sampler has its own.
        """
        if self.steps is not None and own.sampler == ONE_BY_ONE:
            raise ValueError(
                f"--steps {self.steps}: without effect with the checkpoint's sampler, {ONE_BY_ONE}"
            )
        return replace(
            own,
            steps=own.steps if self.steps is None else self.steps,
            guidance=own.guidance if self.guidance is None else self.guidance,
        )


@dataclass(frozen=True)
class Generated:
    """The generated files of a checkpoint; paths are relative to the page.

    Attributes:
        checkpoint: which one.
        folder: of the files.
        images: one per prompt.
        frames: for each of the first prompts, one file per round.
        masks: for each of the first prompts, one string per round: "1" for each code that is masked after it,
            else "0", row by row.
        side: codes in a row.
    """

    checkpoint: Checkpoint
    folder: str
    images: list[str]
    frames: list[list[str]]
    masks: list[list[str]]
    side: int


def generate_images(
    checkpoint: Checkpoint, settings: Settings, out: Path, device: str | None, batch: int
) -> Generated:
    """Generate the images of a checkpoint, unless they were generated before with the same settings.

    The folder of a checkpoint's images appears when it is complete.

    Raises:
        ValueError, OSError: the checkpoint cannot be read.
    """
    name = checkpoint.digest(asdict(settings))
    folder = out / "images" / name
    if not folder.is_dir():
        pipeline = Pipeline.load(
            checkpoint.folder,
            device=device,
            vq_model=settings.vq_model,
            tokenizer=settings.tokenizer,
            clip_model=settings.clip_model,
        )
        with folder_aside(folder) as aside:
            _generate(pipeline, settings, aside, batch)
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
    rounds = SAMPLERS[options.sampler].rounds(options.steps, pipeline.tokens)
    for start in range(0, len(settings.prompts), batch):
        prompts = settings.prompts[start : start + batch]
        sampler = pipeline.sampler(prompts, options)
        noise = [
            image_generator(settings.seed, (start + n,), pipeline.device)
            for n in range(len(prompts))
        ]
        kept = max(0, min(len(prompts), settings.frames - start))
        codes_BN = sampler.codes_BN
        for number, codes_BN in enumerate(sampler.rounds(noise)):
            last = number == rounds - 1
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
    """Write a WebP file, small images without loss."""
    image.save(path, quality=_QUALITY, lossless=max(image.size) <= _LOSSLESS_PX)


def _image_name(place: int) -> str:
    return f"{place:03d}.webp"


def _frame_name(place: int, number: int) -> str:
    return f"{place:03d}-round-{number + 1:03d}.webp"
