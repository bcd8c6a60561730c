"""GenEval (arXiv 2310.11513): per prompt ``00000/metadata.jsonl`` and ``00000/samples/00000.png`` …"""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from showo_data.text import parse_json, read_lines
from showo_dist.evaluation.generating import ImageFile
from showo_dist.evaluation.job import Job, Json, write_text
from showo_dist.evaluation.results import OVERALL, Scores
from showo_dist.evaluation.text_to_image import (
    Chances,
    Prompt,
    TextToImage,
    check_count,
    json_lines,
    keys,
    reca,
)


def read_prompts(path: Path) -> list[Prompt]:
    """Read one prompt per line of ``evaluation_metadata.jsonl``.

    Raises:
        ValueError: a line is not an object with a ``prompt``; file and line are named.
    """
    prompts: list[Prompt] = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            metadata = parse_json(line)
            prompts.append(Prompt(f"{len(prompts):05d}", metadata["prompt"], metadata))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}:{number}: not a JSON object with a prompt ({error!r})"
            ) from None
    return prompts


def image_files(index: int, prompt: Prompt, samples: int) -> list[ImageFile]:
    """One file per sample."""
    return [
        ImageFile(f"{prompt.name}/samples/{number:05d}.png", prompt.text, (key,))
        for number, key in enumerate(keys(index, samples))
    ]


def write_metadata(prompts: list[Prompt], out: Path) -> None:
    """Write the metadata of each prompt where the scorer reads it: in the prompt's own folder.

    Where a file has to be written, the scorer's verdicts, which go by these files, are deleted.
    """
    texts = {out / p.name / "metadata.jsonl": json.dumps(p.metadata) + "\n" for p in prompts}
    new = [p for p, text in texts.items() if not p.is_file() or p.read_bytes() != text.encode()]
    verdicts = out / "results.jsonl"
    if new and verdicts.is_file():
        verdicts.unlink()
        print(f"{verdicts}: deleted, since the metadata of {len(new)} prompts have changed")
    for path in new:
        write_text(path, texts[path])


def scorer(job: Job, out: Path) -> str:
    """The command in a checkout of GenEval."""
    words = ["python", "evaluation/evaluate_images.py", str(out)]
    return shlex.join([*words, "--outfile", str(out / "results.jsonl"), "--model-path", "MODELS"])


def scores(out: Path, prompts: int, samples: int) -> Scores:
    """Share of correct images per category and the mean over categories, from ``results.jsonl``.

    Raises:
        ValueError: the file does not hold verdicts on all images.
    """
    path = out / "results.jsonl"
    if not path.is_file():
        return {}
    records = json_lines(path)
    check_count(path, len(records), prompts * samples)
    return _shares(records)


def _shares(records: Iterable[Json]) -> Scores:
    tags: dict[str, list[bool]] = {}
    for record in records:
        tags.setdefault(record["tag"], []).append(bool(record["correct"]))
    shares = {tag: 100 * fmean(verdicts) for tag, verdicts in tags.items()}
    return {OVERALL: fmean(shares.values()), **shares}


def chances(out: Path) -> Chances:
    """The overall score of the first sample of every prompt, of the second, and so on."""
    by_sample: dict[str, list[Json]] = {}
    for record in json_lines(out / "results.jsonl"):
        by_sample.setdefault(Path(record["filename"]).stem, []).append(record)
    return Chances("samples", [_shares(by_sample[name])[OVERALL] for name in sorted(by_sample)])


GENEVAL = TextToImage(
    help="GenEval's prompts to its folders",
    prompts_help="GenEval's evaluation_metadata.jsonl",
    samples=4,
    most_samples=None,
    read=read_prompts,
    files=image_files,
    owned=("[0-9]" * 5, "results.jsonl"),
    scorer=scorer,
    scores=scores,
    prepare=write_metadata,
    presets=reca(12),
    chances=chances,
)
