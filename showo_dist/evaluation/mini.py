"""The framework ``mini``: GenEval's six categories in the mini world, scored by its exact checker."""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from rich.console import Console

from showo_data.mini import score
from showo_data.text import parse_json, plain_text, read_lines
from showo_dist.evaluation.generating import (
    PARTS,
    ImageFile,
    Question,
    answer_questions,
    generate_files,
)
from showo_dist.evaluation.job import Job, Json, write_json, write_text
from showo_dist.evaluation.mini_scores import (
    Generated,
    MiniQuestion,
    image_name,
    image_scores,
    normalised,
    question_scores,
    read_questions,
    table,
)
from showo_dist.evaluation.results import Outcome
from showo_dist.generation.output import save_image
from showo_dist.logging.grids import captioned_sheet

HELP = "the mini world: its prompts, its checker, its held-out questions"
OWNED = ("images", "asked", PARTS, "images.jsonl", "answers.jsonl", "sheet.png", "scores.json")
_SHEET = 48  # images on a contact sheet
_KEPT = 24  # questions whose image is written to a file
_REQUIRED = ("tag", "include", "prompt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this framework."""
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl of the data set")
    parser.add_argument("--shards", help="held-out shards to ask about, e.g. 'data/val-*.tar'")
    parser.add_argument(
        "--limit", type=int, help="at most so many prompts per category, and images to ask about"
    )
    # It takes a minute, so the evaluation of an earlier checkpoint is always replaced.
    parser.set_defaults(replace=True)


def read_prompts(path: Path, limit: int | None) -> list[Json]:
    """Read the prompts of a file, at most ``limit`` of each category.

    Raises:
        ValueError: names the file and line that is not a prompt, or the empty file.
    """
    taken: dict[str, int] = {}
    prompts = []
    for number, line in enumerate(read_lines(path), start=1):
        prompt = _parse_prompt(path, number, line)
        taken[prompt["tag"]] = taken.get(prompt["tag"], 0) + 1
        if limit is None or taken[prompt["tag"]] <= limit:
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def _parse_prompt(path: Path, number: int, line: str) -> Json:
    try:
        prompt = parse_json(line)
        missing = [key for key in _REQUIRED if key not in prompt]
        plain_text(prompt.get("prompt", "missing"))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}:{number}: not a JSON object ({error})") from None
    if missing:
        raise ValueError(f"{path}:{number}: the prompt has no {' and no '.join(missing)}")
    return prompt


def run(job: Job) -> Outcome:
    """Generate, ask and score; write all results into ``job.out`` and print a table.

    Writes ``scores.json``, ``images.jsonl`` with ``images/*.png``, ``sheet.png``, and with shards
    ``answers.jsonl`` with ``asked/*.png``.

    Raises:
        ValueError, FileNotFoundError: the prompts or shards cannot be read.
    """
    arguments = job.arguments
    prompts = read_prompts(arguments.prompts, arguments.limit)
    questions = []
    if arguments.shards:
        questions = read_questions(arguments.shards, job.pipeline.resolution, arguments.limit)
    settings = _settings(job)
    inputs = [prompts, [(question.key, question.text, question.wanted) for question in questions]]
    job.claim(settings, inputs, OWNED)
    generate_files(job, image_files(prompts), settings)
    answers = answer_questions(job, [Question(q.image, q.text) for q in questions])
    job.ranks.first_alone(lambda: _conclude(job.out, prompts, questions, answers, settings))
    return Outcome(job.checkpoint, job.out)


def _settings(job: Job) -> Json:
    """What the report's command gives again; options that were not given are left out."""
    names = ("limit", "precision", "vq_model", "tokenizer", "clip_model")
    given = {name: getattr(job.arguments, name) for name in names}
    return {
        "checkpoint": job.checkpoint,
        "prompts": str(job.arguments.prompts),
        "shards": job.arguments.shards,
        **{name: value for name, value in given.items() if value not in (None, "auto")},
        **job.sampling_settings(),
    }


def image_files(prompts: list[Json]) -> list[ImageFile]:
    """One file per prompt."""
    return [
        ImageFile(image_name(index), prompt["prompt"], ((index,),), {"tag": prompt["tag"]})
        for index, prompt in enumerate(prompts)
    ]


def _conclude(
    out: Path,
    prompts: list[Json],
    questions: list[MiniQuestion],
    answers: list[str],
    settings: Mapping[str, object],
) -> None:
    generated = read_generated(out, prompts)
    save_verdicts(generated, out)
    records = save_answers(questions, answers, out) if questions else []
    scores = {"framework": "mini", "settings": settings, **image_scores(generated)}
    scores["questions"] = question_scores(records)
    write_json(out / "scores.json", scores, indent=2)
    Console().print(table(scores))


def read_generated(out: Path, prompts: list[Json]) -> list[Generated]:
    """Read the images of the prompts and score them."""
    generated = []
    for index, prompt in enumerate(prompts):
        with Image.open(out / image_name(index)) as file:
            image = file.convert("RGB")
        generated.append(Generated(index, prompt, image, score(image, prompt)))
    return generated


def save_verdicts(generated: list[Generated], out: Path) -> None:
    """Write one line per image, and a contact sheet of some of them."""
    write_lines(out / "images.jsonl", (item.to_json() for item in generated))
    step = max(1, len(generated) // _SHEET)
    shown = generated[::step][:_SHEET]
    captions = [f"{p.prompt['prompt']}\n{'correct' if p.score.correct else 'wrong'}" for p in shown]
    pairs = [(item.image, text) for item, text in zip(shown, captions, strict=True)]
    save_image(captioned_sheet(pairs, columns=8), out / "sheet.png", {})


def save_answers(questions: list[MiniQuestion], answers: list[str], out: Path) -> list[Json]:
    """Write one line per question, and the images of some; return the lines."""
    records: list[Json] = []
    for number, (question, given) in enumerate(zip(questions, answers, strict=True)):
        record: Json = {
            "key": question.key,
            "type": question.kind,
            "question": question.text,
            "wanted": question.wanted,
            "answer": given,
            "correct": normalised(given) == normalised(question.wanted),
        }
        if number < _KEPT:
            record["file"] = f"asked/{number:05d}.png"
            save_image(question.image, out / record["file"], {"question": question.text})
        records.append(record)
    write_lines(out / "answers.jsonl", records)
    return records


def write_lines(path: Path, records: Iterable[Json]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
