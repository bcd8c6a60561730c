"""GenEval's layout (arXiv 2310.11513): per prompt ``00000/metadata.jsonl``, ``00000/samples/00000.png`` …"""

import json
import shlex
from pathlib import Path

from showo_dist.evaluation.asking import write_json
from showo_dist.evaluation.generated.benchmark import Benchmark, Prompt, keys
from showo_dist.evaluation.generating import ImageFile
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.results import Scores, geneval_scores


def read_prompts(path: Path) -> list[Prompt]:
    """One prompt per line of ``evaluation_metadata.jsonl``.

    Raises:
        ValueError: a line is not an object with a ``prompt``; file and line are named.
    """
    prompts: list[Prompt] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            metadata = json.loads(line)
            text = metadata["prompt"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}:{number}: not a JSON object with a prompt ({error!r})"
            ) from None
        prompts.append(Prompt(f"{len(prompts):05d}", text, metadata))
    return prompts


def image_files(index: int, prompt: Prompt, samples: int) -> list[ImageFile]:
    """A file per sample."""
    return [
        ImageFile(f"{prompt.name}/samples/{number:05d}.png", prompt.text, (key,))
        for number, key in enumerate(keys(index, samples))
    ]


def write_metadata(prompts: list[Prompt], out: Path) -> None:
    """The line of each prompt, which the scorer reads from the prompt's own folder."""
    for prompt in prompts:
        path = out / prompt.name / "metadata.jsonl"
        if not path.is_file():
            write_json(path, prompt.metadata)


def scorer(job: Job, out: Path) -> str:
    """In a checkout of GenEval."""
    words = ["python", "evaluation/evaluate_images.py", str(out)]
    return shlex.join([*words, "--outfile", str(out / "results.jsonl"), "--model-path", "MODELS"])


def scores(out: Path, prompts: int, samples: int) -> Scores:
    """See :func:`showo_dist.evaluation.results.geneval_scores`."""
    return geneval_scores(out, prompts * samples)


GENEVAL = Benchmark(
    help="GenEval's prompts to its folders",
    prompts_help="GenEval's evaluation_metadata.jsonl",
    samples=4,
    most_samples=None,
    read=read_prompts,
    files=image_files,
    owned=("[0-9]" * 5,),
    scorer=scorer,
    scores=scores,
    prepare=write_metadata,
)
