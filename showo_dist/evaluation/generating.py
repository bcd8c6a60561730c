"""Prompts to image files that say how they were made, spread over the ranks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from showo_dist.evaluation.job import Job
from showo_dist.evaluation.spread import Unit, batches, one_thread, spread
from showo_dist.generation.output import save_image
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.sampling import ImageSampler, SamplingOptions, sample_codes

# Numbers that, with the seed, decide all random numbers of one image.
Key = tuple[int, ...]


@dataclass(frozen=True)
class ImageFile:
    """One file to generate.

    Attributes:
        path: where, relative to the output folder.
        prompt: the text.
        keys: one per sample that the file shows.
        notes: what its PNG says beside the settings.
    """

    path: str
    prompt: str
    keys: tuple[Key, ...]
    notes: Mapping[str, object] = field(default_factory=dict)


def one_image(samples: Sequence[Image.Image]) -> Image.Image:
    """The file of a single sample is the sample."""
    (image,) = samples
    return image


def generator(seed: int, key: Key, device: torch.device) -> torch.Generator:
    """The random numbers of one image: of (seed, key) alone, never of a rank or a batch."""
    (state,) = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))


def generate_samples(
    pipeline: Pipeline, wanted: Sequence[tuple[str, Key]], options: SamplingOptions, seed: int
) -> list[Image.Image]:
    """One image per (prompt, key), all of them in one batch."""
    sampler = sampler_of(pipeline, [prompt for prompt, _ in wanted], options)
    codes_BN = sample_codes(sampler, [generator(seed, key, pipeline.device) for _, key in wanted])
    return pipeline.decode(codes_BN)


def sampler_of(
    pipeline: Pipeline, prompts: Sequence[str], options: SamplingOptions
) -> ImageSampler:
    """A sampler of one image per prompt."""
    return ImageSampler(
        pipeline.model,
        pipeline.vocabulary,
        [pipeline.text.encode(prompt) for prompt in prompts],
        budget=pipeline.budget,
        options=options,
        tokens=pipeline.tokens,
    )


def generate_files(
    job: Job,
    files: Sequence[ImageFile],
    settings: Mapping[str, object],
    compose: Callable[[Sequence[Image.Image]], Image.Image] = one_image,
) -> None:
    """Generate every file that is not there yet, each by one rank; returns when all are there.

    Args:
        job: says with what; ``--batch`` samples are generated together, always the same ones.
        files: in order, each with the same number of samples.
        settings: noted in every PNG.
        compose: the samples of a file to its image.

    Raises:
        ValueError, OSError, RuntimeError: see :func:`showo_dist.evaluation.spread.spread`.
    """
    per_file = max((len(file.keys) for file in files), default=1)
    parts = batches(files, max(1, job.arguments.batch // per_file))
    units = [
        Unit(index, tuple(job.out / file.path for file in part)) for index, part in enumerate(parts)
    ]
    options, seed = job.options(), job.arguments.seed

    def make(unit: Unit) -> None:
        part = parts[unit.index]
        wanted = [(file.prompt, key) for file in part for key in file.keys]
        samples = generate_samples(job.pipeline, wanted, options, seed)
        for number, (file, path) in enumerate(zip(part, unit.files, strict=True)):
            if not path.is_file():
                image = compose(samples[number * per_file : (number + 1) * per_file])
                save_image(image, path, {**settings, "prompt": file.prompt, **file.notes})

    with one_thread(job.pipeline.device):
        spread(units, make, job.ranks, "generation")


def open_image(path: Path) -> Image.Image:
    """An image that was written here, as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")
