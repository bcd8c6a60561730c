"""What the benchmarks' own scorers found, read from the files that they write."""

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from showo_dist.evaluation.record import RECORD_NAME

# Name of a measure -> value in percent; the one called OVERALL is the benchmark's headline.
Scores = dict[str, float]
OVERALL = "overall"

# WISE (its README): the weights of an image's three marks, each 0, 1 or 2.
_WISE_WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
_WISE_BEST = 2
_DPG_SCORE = re.compile(r"DPG-Bench score:\s*([\d.]+)")
_DPG_GROUP = re.compile(r"^\t(\w+): ([\d.]+)$")


def geneval_scores(out: Path, pictures: int) -> Scores:
    """Shares of right pictures per category and their mean, from ``results.jsonl``; empty without that file.

    Raises:
        ValueError: the file does not hold verdicts on all pictures.
    """
    path = out / "results.jsonl"
    if not path.is_file():
        return {}
    tags: dict[str, list[bool]] = {}
    for record in _json_lines(path):
        tags.setdefault(record["tag"], []).append(bool(record["correct"]))
    _check_count(path, sum(map(len, tags.values())), pictures)
    shares = {tag: 100 * fmean(verdicts) for tag, verdicts in tags.items()}
    return {OVERALL: fmean(shares.values()), **shares}


def dpg_scores(out: Path, prompts: int) -> Scores:
    """The score and those of the broad categories, from ``results.txt``; empty without that file.

    Raises:
        ValueError: the scorer did not come to its end, or left pictures out.
    """
    path = out / "results.txt"
    if not path.is_file():
        return {}
    text = path.read_text()
    score = _DPG_SCORE.search(text)
    if score is None:
        raise ValueError(f"{path}: no line 'DPG-Bench score: …'; the scorer has not finished")
    _check_count(path, len(re.findall(r"^[^\t\n]*\.png, ", text, re.MULTILINE)), prompts)
    broad, _, _ = text.partition("L2 category scores")
    groups = (_DPG_GROUP.match(line) for line in broad.splitlines())
    return {OVERALL: float(score[1]), **{m[1]: float(m[2]) for m in groups if m is not None}}


def wise_scores(out: Path, prompts: int) -> Scores:
    """WiScore over all prompts, from ``results/*_scores.jsonl``; empty without such files.

    Its published overall weighs each category by its number of prompts, so that it is the plain mean.

    Raises:
        ValueError: not all prompts were judged.
    """
    marks: dict[int, dict[str, Any]] = {}
    paths = sorted((out / "results").glob("*_scores.jsonl"))
    for path in paths:
        marks |= {record["prompt_id"]: record for record in _json_lines(path)}
    judged = [record for record in marks.values() if _is_judged(record)]
    if not paths:
        return {}
    _check_count(paths[0].parent, len(judged), prompts)
    scores = (
        sum(weight * record[name] for name, weight in _WISE_WEIGHTS.items()) for record in judged
    )
    return {OVERALL: 100 * fmean(scores) / _WISE_BEST}


def _is_judged(record: dict[str, Any]) -> bool:
    """The scorer writes a number far out of range when its judge gave no marks."""
    return all(record[name] <= _WISE_BEST for name in _WISE_WEIGHTS)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON lines ({error})") from None


def _check_count(path: Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(
            f"{path}: holds verdicts on {found} of {wanted} pictures; run the scorer again "
            f"(what was painted is in {RECORD_NAME} beside it)"
        )
