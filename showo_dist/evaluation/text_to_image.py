"""Common parts of the text-to-image benchmarks: command line, settings, order of the work."""

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from PIL import Image

from showo_data.text import parse_json, plain_name, plain_text, read_lines
from showo_dist.evaluation.generating import ImageFile, Key, generate_files, one_image
from showo_dist.evaluation.job import RECORD_NAME, Job
from showo_dist.evaluation.results import Outcome, Scores


@dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark.

    Attributes:
        name: the scorer's name for it.
        text: the prompt itself.
        metadata: its whole entry in the prompt file.
        source: returns the image, as the bytes of a file, that ``text`` is an instruction to edit; None:
            there is none.

    Raises:
        ValueError: ``name``, which becomes the name of files, cannot be one, or ``text`` is no text.
    """

    name: str
    text: str
    metadata: dict[str, Any]
    source: Callable[[], bytes] | None = None

    def __post_init__(self) -> None:
        plain_name(self.name)
        plain_text(self.text)

    def digests(self) -> list[str]:
        """SHA-256 of the source, if there is one."""
        return [] if self.source is None else [hashlib.sha256(self.source()).hexdigest()]


@dataclass(frozen=True)
class Preset:
    """Settings that a publication used for images from texts; options of the command line take precedence.

    ``budget`` is no option: the most tokens of a prompt, task token and bos included, of all weights alike.
    """

    samples: int
    steps: int
    guidance: float
    budget: int


def reca(samples: int) -> dict[str, Preset]:
    """The preset ``reca``: the released rounds and guidance (docs/specification.md, section 10).

    RecA's evaluation reads the released demo configs, whose budget is 128, for all weights.
    """
    return {"reca": Preset(samples, steps=50, guidance=5.0, budget=128)}


@dataclass(frozen=True)
class Chances:
    """Scores that differ by chance alone, in percent; their mean is the overall score.

    Attributes:
        what: ``samples``: one score per sample of each prompt, over all prompts; ``prompts``: one per prompt.
        scores: of each.
    """

    what: str
    scores: list[float]

    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean by Student's t, within 0 to 100; None for fewer than two scores."""
        if len(self.scores) < 2:
            return None
        half = t_quantile(len(self.scores) - 1) * stdev(self.scores) / sqrt(len(self.scores))
        middle = fmean(self.scores)
        return max(0.0, middle - half), min(100.0, middle + half)


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution; beyond 30 degrees of freedom by its expansion."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return z + (z**3 + z) / (4 * degrees) + second


_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class TextToImage:
    """A benchmark whose scorer reads generated images.

    Attributes:
        help: one line for the command line.
        prompts_help: which file or folder it takes its prompts from.
        samples: default number of images per prompt.
        most_samples: the most its layout has room for; None: any number.
        read: reads the prompts of a file or folder, in order; with ``images_help``, it also gets the folder
            of images. Raises ValueError naming the faulty place.
        files: (index of the prompt, prompt, samples) -> the files to generate.
        owned: glob patterns of all files of the layout.
        scorer: (job, absolute output folder) -> the command that scores it.
        scores: (output folder, prompts, samples per prompt) -> scores read from the scorer's result file,
            empty without that file. Raises ValueError when it does not cover all images.
        compose: makes the image of a file from its samples.
        prepare: (prompts, output folder): writes other files that the scorer needs.
        images_help: which folder the images to edit are in; empty: it needs none.
        presets: settings of publications, by name.
        chances: (output folder) -> scores that differ by chance, from a result file that ``scores`` accepts.
    """

    help: str
    prompts_help: str
    samples: int
    most_samples: int | None
    read: Callable[..., list[Prompt]]
    files: Callable[[int, Prompt, int], list[ImageFile]]
    owned: tuple[str, ...]
    scorer: Callable[[Job, Path], str]
    scores: Callable[[Path, int, int], Scores]
    compose: Callable[[Sequence[Image.Image]], Image.Image] = one_image
    prepare: Callable[[list[Prompt], Path], None] | None = None
    images_help: str = ""
    presets: Mapping[str, Preset] = field(default_factory=dict)
    chances: Callable[[Path], Chances] | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options that all of these benchmarks have."""
        parser.add_argument("--prompts", type=Path, required=True, help=self.prompts_help)
        parser.add_argument("--samples", type=int, help=f"images per prompt ({self.samples})")
        if self.presets:
            listed = [f"{name}: {asdict(preset)}" for name, preset in self.presets.items()]
            parser.add_argument("--preset", choices=self.presets, help="; ".join(listed))
        parser.add_argument("--limit", type=int, help="only the first so many prompts")
        parser.add_argument(
            "--allow-unscored",
            action="store_true",
            help="take an incomplete result file of the scorer as none, instead of an error",
        )
        if self.images_help:
            parser.add_argument("--images", type=Path, required=True, help=self.images_help)

    def run(self, job: Job) -> Outcome:
        """Generate the missing images, and read the scorer's results if it ran.

        Raises:
            ValueError, OSError: the prompts cannot be read, the output folder holds another evaluation, or
                a rank failed.
        """
        preset = self.presets.get(getattr(job.arguments, "preset", None) or "")
        _fill(job.arguments, asdict(preset) if preset else {"samples": self.samples})
        if preset:
            job = replace(job, pipeline=replace(job.pipeline, budget=preset.budget))
        samples = job.arguments.samples
        prompts = self._read_prompts(job.arguments)
        settings = {"checkpoint": job.checkpoint, "samples": samples, **job.sampling_settings()}
        ids = [job.pipeline.text.encode(prompt.text) for prompt in prompts]
        inputs = [[p.name, own, *p.digests()] for p, own in zip(prompts, ids, strict=True)]
        job.claim(settings, inputs, self.owned)
        if job.ranks.is_first:
            _report_cuts([len(own) for own in ids], job.pipeline.budget)
        prepare = self.prepare
        if prepare is not None:
            job.ranks.first_alone(lambda: prepare(prompts, job.out))
        files = [
            file
            for index, prompt in enumerate(prompts)
            for file in self.files(index, prompt, samples)
        ]
        generate_files(job, files, settings, self.compose)
        scores = self._scores(job, len(prompts)) if job.ranks.is_first else {}
        return Outcome(job.checkpoint, job.out, self.scorer(job, job.out.resolve()), scores)

    def _scores(self, job: Job, prompts: int) -> Scores:
        try:
            return self.scores(job.out, prompts, job.arguments.samples)
        except ValueError:
            if job.arguments.allow_unscored:
                return {}
            raise

    def _read_prompts(self, arguments: argparse.Namespace) -> list[Prompt]:
        if self.most_samples is not None and arguments.samples > self.most_samples:
            raise ValueError(
                f"--samples {arguments.samples}: {arguments.framework} takes at most "
                f"{self.most_samples} per prompt"
            )
        folders = [arguments.images] if self.images_help else []
        prompts = self.read(arguments.prompts, *folders)[: arguments.limit]
        if not prompts:
            raise ValueError(f"--prompts {arguments.prompts}: holds no prompts")
        return prompts


def _fill(arguments: argparse.Namespace, values: Mapping[str, object]) -> None:
    """Fill in the options that the command line left open."""
    for name, value in values.items():
        if getattr(arguments, name, value) is None:
            setattr(arguments, name, value)


def _report_cuts(lengths: Sequence[int], budget: int) -> None:
    """Print how many prompts of these numbers of tokens are cut."""
    cut = sum(length + 2 > budget for length in lengths)  # the task token and bos count too
    if cut:
        print(f"{cut} of {len(lengths)} prompts are cut: they exceed the budget of {budget} tokens")


def keys(index: int, samples: int) -> list[Key]:
    """The random key of each sample of a prompt."""
    return [(index, sample) for sample in range(samples)]


def a_folder_per_sample(index: int, prompt: Prompt, samples: int) -> list[ImageFile]:
    """``images/NAME.png``; samples after the first are in other folders, one for each run of the scorer."""
    folders = ["images", *(f"images-{number}" for number in range(1, samples))]
    return [
        ImageFile(f"{folder}/{prompt.name}.png", prompt.text, (key,), source=prompt.source)
        for folder, key in zip(folders, keys(index, samples), strict=True)
    ]


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a result file of one JSON object per line.

    Raises:
        ValueError: a line is not JSON.
    """
    try:
        return [parse_json(line) for line in read_lines(path) if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path}: not JSON lines ({error})") from None


def check_count(path: Path, found: int, wanted: int) -> None:
    """Refuse a result file that does not cover every image.

    Raises:
        ValueError: ``found`` is not ``wanted``.
    """
    if found != wanted:
        raise ValueError(
            f"{path}: holds verdicts on {found} of {wanted} images; run the scorer again "
            f"(what was generated is in {RECORD_NAME} beside it)"
        )
