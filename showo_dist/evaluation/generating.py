"""Generate images from prompts and answers to questions, spread over the ranks."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from showo_data.images import decode
from showo_data.text import plain_text
from showo_dist.evaluation.job import Job, Json, write_json
from showo_dist.evaluation.spread import Unit, batches, is_complete, one_thread, spread
from showo_dist.generation.conversation import Edit
from showo_dist.generation.output import save_image
from showo_dist.generation.pipeline import Pipeline, Prompt
from showo_dist.generation.sampling import SamplingOptions, sample_codes
from showo_dist.runtime.numerics import image_generator

PARTS = "parts"  # folder of the answers, one file per batch
MAX_NEW_TOKENS = 32

# Integers that, with the seed, decide all random numbers of one image.
Key = tuple[int, ...]


@dataclass(frozen=True)
class ImageFile:
    """One file to generate.

    Attributes:
        path: relative to the output folder.
        prompt: the text.
        keys: one per sample that the file shows.
        notes: text entries of its PNG beside the settings.
        source: returns the image, as the bytes of a file, that ``prompt`` is an instruction to edit; None:
            there is none.
    """

    path: str
    prompt: str
    keys: tuple[Key, ...]
    notes: Mapping[str, object] = field(default_factory=dict)
    source: Callable[[], bytes] | None = None

    def asked(self) -> Prompt:
        """What the pipeline is asked to generate.

        Raises:
            ValueError: the source is no image; the file is named.
        """
        if self.source is None:
            return self.prompt
        try:
            return Edit(decode(self.source()), self.prompt)
        except Exception as error:  # Pillow's formats do not share an exception
            raise ValueError(
                f"{self.path}: its source cannot be read as an image ({error})"
            ) from error


def one_image(samples: Sequence[Image.Image]) -> Image.Image:
    """The only sample of a file."""
    (image,) = samples
    return image


def generate_samples(
    pipeline: Pipeline, wanted: Sequence[tuple[Prompt, Key]], options: SamplingOptions, seed: int
) -> list[Image.Image]:
    """One image per (prompt, key), all of them in one batch."""
    sampler = pipeline.sampler([prompt for prompt, _ in wanted], options)
    codes_BN = sample_codes(
        sampler, [image_generator(seed, key, pipeline.device) for _, key in wanted]
    )
    return pipeline.decode(codes_BN)


def generate_files(
    job: Job,
    files: Sequence[ImageFile],
    settings: Mapping[str, object],
    compose: Callable[[Sequence[Image.Image]], Image.Image] = one_image,
) -> None:
    """Generate every file that does not exist yet, each on one rank; return when all exist.

    Args:
        job: the checkpoint; ``--batch`` samples are generated together, always the same ones.
        files: in order, each with the same number of samples.
        settings: text entries of every PNG.
        compose: makes the image of a file from its samples.

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
        # The whole unit is computed even when some files exist: another batch could round differently.
        wanted = [(prompt, key) for file in part for prompt in [file.asked()] for key in file.keys]
        samples = generate_samples(job.pipeline, wanted, options, seed)
        for number, (file, path) in enumerate(zip(part, unit.files, strict=True)):
            if not is_complete(path):
                image = compose(samples[number * per_file : (number + 1) * per_file])
                save_image(image, path, {**settings, "prompt": file.prompt, **file.notes})

    with one_thread(job.pipeline.device):
        spread(units, make, job.ranks, "generation")


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        image: the image, its file, or the bytes of a file.
        text: the question as the model reads it.
        record: what a benchmark's answer file holds about it beside the answer.

    Raises:
        ValueError: ``text`` is no text.
    """

    image: Image.Image | Path | bytes
    text: str
    record: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain_text(self.text)

    def open(self) -> Image.Image:
        """The image as RGB, rotated as its EXIF orientation says.

        Raises:
            ValueError: it cannot be read; the file is named.
        """
        if isinstance(self.image, Image.Image):
            return self.image
        try:
            image = self.image
            return decode(image.read_bytes() if isinstance(image, Path) else image)
        except Exception as error:  # Pillow's formats do not share an exception
            name = self.image if isinstance(self.image, Path) else f"image of {self.text!r}"
            raise ValueError(f"{name}: not an image that can be read ({error})") from error


def answer_questions(
    job: Job, questions: Sequence[Question], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """The most likely answer to every question, in their order, on every rank.

    The answers of one batch are one file in ``parts``; a batch whose file exists is not computed again.

    Raises:
        ValueError, OSError, RuntimeError: see :func:`showo_dist.evaluation.spread.spread`.
    """
    parts = batches(questions, job.arguments.batch)
    units = [Unit(index, (job.out / PARTS / f"{index:06d}.json",)) for index in range(len(parts))]

    def make(unit: Unit) -> None:
        part = parts[unit.index]
        answers = job.pipeline.ask(
            [question.open() for question in part],
            [question.text for question in part],
            max_new_tokens=max_new_tokens,
            batch=len(part),
        )
        write_json(unit.files[0], answers)

    with one_thread(job.pipeline.device):
        spread(units, make, job.ranks, "answers")
    return [answer for unit in units for answer in json.loads(unit.files[0].read_text())]
