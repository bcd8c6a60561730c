"""WISE (arXiv 2503.07265): ``PROMPT_ID.png`` for every prompt of its JSON lists."""

import shlex
from pathlib import Path
from statistics import fmean
from typing import Any

from showo_data.text import is_apple_double, parse_json, read_text
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.results import OVERALL, Scores
from showo_dist.evaluation.text_to_image import (
    Chances,
    Prompt,
    TextToImage,
    a_folder_per_sample,
    check_count,
    json_lines,
    reca,
)

# WISE (its README): the weights of an image's three marks, each 0, 1 or 2.
_WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
_BEST_MARK = 2


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts of one JSON list, or of the lists of a folder, ordered by id.

    Raises:
        ValueError: a file is not such a list, or two prompts have the same id.
    """
    prompts: dict[str, Prompt] = {}
    for file in prompt_files(path):
        for prompt in _read_list(file):
            if prompt.name in prompts:
                raise ValueError(f"{file}: prompt_id {prompt.name} is there a second time")
            prompts[prompt.name] = prompt
    return sorted(prompts.values(), key=lambda prompt: (len(prompt.name), prompt.name))


def prompt_files(path: Path) -> list[Path]:
    """The file itself, or the JSON files of the folder but WISE's rewritten prompts, which repeat the ids."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.glob("*.json")
        if not (is_apple_double(file) or file.stem.endswith("_rewrite"))
    )


def _read_list(path: Path) -> list[Prompt]:
    text = read_text(path)
    try:
        entries: list[dict[str, Any]] = parse_json(text)
        return [Prompt(str(entry["prompt_id"]), entry["Prompt"], entry) for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not a JSON list of objects with Prompt and prompt_id ({error!r})"
        ) from None


def scorer(job: Job, out: Path) -> str:
    """The commands in ``WISE_legacy`` of its checkout, one per prompt list; the judge is a paid service."""
    return "\n".join(
        _score_list(file.resolve(), out) for file in prompt_files(job.arguments.prompts)
    )


def _score_list(prompts: Path, out: Path) -> str:
    options = {
        "--json_path": prompts,
        "--image_dir": out / "images",
        "--output_dir": out / "results",
        "--model": "gpt-4o-2024-05-13",  # the judge that its README names
        "--result_full": f"{prompts.stem}_full.json",
        "--result_scores": f"{prompts.stem}_scores.jsonl",
        "--api_key": "KEY",
    }
    return shlex.join(
        ["python", "gpt_eval.py", *(str(w) for pair in options.items() for w in pair)]
    )


def scores(out: Path, prompts: int, samples: int) -> Scores:
    """WiScore over all prompts, from ``results/*_scores.jsonl``.

    The published overall score weighs each category by its number of prompts, so it is the plain mean.

    Raises:
        ValueError: not all prompts were judged.
    """
    if not _result_files(out):
        return {}
    marks = _marks(out)
    check_count(out / "results", len(marks), prompts)
    return {OVERALL: fmean(map(_score, marks))}


def chances(out: Path) -> Chances:
    """The score of every prompt: with one sample of each, their spread is all that is known of chance."""
    return Chances("prompts", list(map(_score, _marks(out))))


def _result_files(out: Path) -> list[Path]:
    return sorted((out / "results").glob("*_scores.jsonl"))


def _marks(out: Path) -> list[dict[str, Any]]:
    """The records of all result files that hold marks, one per prompt."""
    marks: dict[int, dict[str, Any]] = {}
    for path in _result_files(out):
        marks |= {record["prompt_id"]: record for record in json_lines(path)}
    return list(filter(_is_judged, marks.values()))


def _score(record: dict[str, Any]) -> float:
    return 100 * sum(weight * record[name] for name, weight in _WEIGHTS.items()) / _BEST_MARK


def _is_judged(record: dict[str, Any]) -> bool:
    """Whether all marks are in range: the scorer writes a far larger number when its judge gave none."""
    return all(record[name] <= _BEST_MARK for name in _WEIGHTS)


WISE = TextToImage(
    help="WISE's prompts to PROMPT_ID.png",
    prompts_help="a WISE prompt list (JSON), or the folder of all of them",
    samples=1,
    most_samples=None,
    read=read_prompts,
    files=a_folder_per_sample,
    owned=("images", "images-*", "results"),
    scorer=scorer,
    scores=scores,
    presets=reca(1),
    chances=chances,
)
