"""What the text-to-image benchmarks share: the command line, the settings, the order of work."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from showo_dist.evaluation.generating import ImageFile, generate_files, one_image
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.record import inputs_digest
from showo_dist.evaluation.results import Outcome, Scores

BATCH = 8


@dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark.

    Attributes:
        name: what the scorer calls it.
        text: what is generated.
        metadata: all that the prompt file says about it.
    """

    name: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """The conventions of one scorer.

    Attributes:
        help: one line for the command line.
        prompts_help: which file or folder it takes its prompts from.
        samples: images per prompt, unless the command line says otherwise.
        most_samples: more than so many have no place in its layout; None: any number.
        read: the prompts of a file or folder, in order. Raises ValueError naming what is wrong where.
        files: (index of the prompt, prompt, samples) to the files it gets.
        owned: glob patterns of all files of the layout.
        scorer: (job, its absolute output folder) to the command that scores it.
        scores: (output folder, prompts, samples per prompt) to what the scorer found. Raises ValueError where
            it did not judge them all.
        compose: the samples of a file to its image.
        prepare: writes what must lie beside the images: (prompts, output folder).
    """

    help: str
    prompts_help: str
    samples: int
    most_samples: int | None
    read: Callable[[Path], list[Prompt]]
    files: Callable[[int, Prompt, int], list[ImageFile]]
    owned: tuple[str, ...]
    scorer: Callable[[Job, Path], str]
    scores: Callable[[Path, int, int], Scores]
    compose: Callable[[Sequence[Image.Image]], Image.Image] = one_image
    prepare: Callable[[list[Prompt], Path], None] | None = None


def add_arguments(benchmark: Benchmark, parser: argparse.ArgumentParser) -> None:
    """The options of a text-to-image benchmark."""
    parser.add_argument("--prompts", type=Path, required=True, help=benchmark.prompts_help)
    parser.add_argument(
        "--samples", type=int, default=benchmark.samples, help="images per prompt (%(default)s)"
    )
    parser.add_argument("--limit", type=int, help="only the first so many prompts")


def run(benchmark: Benchmark, job: Job) -> Outcome:
    """Generate what is missing of a benchmark, and look whether its scorer ran.

    Raises:
        ValueError, OSError: the prompts cannot be read, the output folder holds something else, or a rank
            failed.
    """
    arguments = job.arguments
    prompts = read_prompts(benchmark, arguments)
    settings = _settings(job)
    ids = [[prompt.name, job.pipeline.text.encode(prompt.text)] for prompt in prompts]
    job.claim({**settings, "inputs": inputs_digest(ids)}, benchmark.owned)
    prepare = benchmark.prepare
    if prepare is not None:
        job.ranks.first_alone(lambda: prepare(prompts, job.out))
    files = [
        file
        for index, prompt in enumerate(prompts)
        for file in benchmark.files(index, prompt, arguments.samples)
    ]
    generate_files(job, files, settings, benchmark.compose)
    scores = (
        benchmark.scores(job.out, len(prompts), arguments.samples) if job.ranks.is_first else {}
    )
    return Outcome(job.checkpoint, job.out, benchmark.scorer(job, job.out.resolve()), scores)


def read_prompts(benchmark: Benchmark, arguments: argparse.Namespace) -> list[Prompt]:
    """The prompts that the command line asks for.

    Raises:
        ValueError: there are none, or more samples are asked for than the layout has places.
    """
    if benchmark.most_samples is not None and arguments.samples > benchmark.most_samples:
        raise ValueError(
            f"--samples {arguments.samples}: {arguments.framework} takes at most "
            f"{benchmark.most_samples} per prompt"
        )
    prompts = benchmark.read(arguments.prompts)[: arguments.limit]
    if not prompts:
        raise ValueError(f"--prompts {arguments.prompts}: holds no prompts")
    return prompts


def _settings(job: Job) -> dict[str, object]:
    options, arguments = job.options(), job.arguments
    return {
        "checkpoint": job.checkpoint,
        "seed": arguments.seed,
        "samples": arguments.samples,
        "batch": arguments.batch,
        "steps": options.steps,
        "guidance": options.guidance,
        "temperature": options.temperature,
    }


def keys(index: int, samples: int) -> list[tuple[int, ...]]:
    """What decides the random numbers of each sample of a prompt, beside the seed."""
    return [(index, sample) for sample in range(samples)]
