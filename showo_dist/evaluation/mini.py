"""The framework ``mini``: GenEval's six categories in the mini world, read back by its checker."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from showo_data.mini import COLOURS, SHAPES, TAGS, Score, score
from showo_dist.evaluation.painting import paint_prompts, save_picture
from showo_dist.evaluation.questions import (
    OPEN_ENDED,
    Question,
    ask_all,
    normalised,
    read_questions,
)
from showo_dist.evaluation.tally import Tally
from showo_dist.generation.paint import PaintOptions
from showo_dist.generation.pipeline import Pipeline
from showo_dist.report.grids import captioned_sheet

HELP = "the mini world: its prompts, its checker, its held-out questions"
_SHEET = 48  # pictures on a contact sheet
_KEPT = 24  # questions whose picture is written to a file
_REQUIRED = ("tag", "include", "prompt")

Json = dict[str, Any]


@dataclass(frozen=True)
class Painted:
    """A picture, what it should show, and the checker's verdict."""

    index: int
    prompt: Json
    picture: Image.Image
    score: Score

    @property
    def file(self) -> str:
        return f"pictures/{self.index:05d}.png"

    @property
    def single(self) -> bool:
        """Whether one single object was asked for."""
        return [entry["count"] for entry in self.prompt["include"]] == [1]

    def to_json(self) -> Json:
        return {
            "file": self.file,
            "tag": self.prompt["tag"],
            "prompt": self.prompt["prompt"],
            "correct": self.score.correct,
            "reason": self.score.reason,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this framework."""
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl of the data set")
    parser.add_argument("--shards", help="held-out shards to ask about, e.g. 'data/val-*.tar'")
    parser.add_argument(
        "--limit", type=int, help="at most so many prompts per category, and pictures to ask about"
    )


def read_prompts(path: Path, limit: int | None) -> list[Json]:
    """The prompts of a file, at most ``limit`` of each category.

    Raises:
        ValueError: names the file and line that is not a prompt, or the empty file.
    """
    taken: dict[str, int] = {}
    prompts = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        prompt = _parse_prompt(path, number, line)
        taken[prompt["tag"]] = taken.get(prompt["tag"], 0) + 1
        if limit is None or taken[prompt["tag"]] <= limit:
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def _parse_prompt(path: Path, number: int, line: str) -> Json:
    try:
        prompt = json.loads(line)
        missing = [key for key in _REQUIRED if key not in prompt]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path}:{number}: not a JSON object ({error})") from None
    if missing:
        raise ValueError(f"{path}:{number}: the prompt has no {' and no '.join(missing)}")
    return prompt


def run(pipeline: Pipeline, arguments: argparse.Namespace, checkpoint: str, out: Path) -> None:
    """Paint, score, ask; write everything into ``out`` and print a table.

    Writes ``scores.json``, ``pictures.jsonl`` with ``pictures/*.png``, ``sheet.png``, and with shards
    ``answers.jsonl`` with ``asked/*.png``.

    Raises:
        ValueError, FileNotFoundError: the prompts or shards cannot be read.
    """
    prompts = read_prompts(arguments.prompts, arguments.limit)
    options = chosen_options(pipeline.options, arguments.steps, arguments.guidance)
    questions = []
    if arguments.shards:
        questions = read_questions(arguments.shards, pipeline.resolution, arguments.limit)
    settings = {
        "checkpoint": checkpoint,
        "prompts": str(arguments.prompts),
        "shards": arguments.shards,
        "seed": arguments.seed,
        "batch": arguments.batch,
        "steps": options.steps,
        "guidance": options.guidance,
        "temperature": options.temperature,
    }
    out.mkdir(parents=True, exist_ok=True)
    painted = paint_and_score(pipeline, prompts, options, arguments.seed, arguments.batch)
    save_painted(painted, settings, out)
    answers = ask_all(pipeline, questions, arguments.batch)
    records = save_answers(questions, answers, out) if questions else []
    scores = {"framework": "mini", "settings": settings, **picture_scores(painted)}
    scores["questions"] = question_scores(records)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    Console().print(table(scores))


def chosen_options(
    options: PaintOptions, steps: int | None, guidance: float | None
) -> PaintOptions:
    """The checkpoint's own options where the command line names no others."""
    changes: Json = {"steps": steps, "guidance": guidance}
    return replace(options, **{name: v for name, v in changes.items() if v is not None})


def paint_and_score(
    pipeline: Pipeline, prompts: list[Json], options: PaintOptions, seed: int, batch: int
) -> list[Painted]:
    """A picture and a verdict for every prompt."""
    texts = [prompt["prompt"] for prompt in prompts]
    pictures = paint_prompts(pipeline, texts, options, seed, batch)
    return [
        Painted(index, prompt, picture, score(picture, prompt))
        for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
    ]


def save_painted(painted: list[Painted], settings: Mapping[str, object], out: Path) -> None:
    """Pictures with their settings, one line about each, and a contact sheet."""
    for item in painted:
        notes = {**settings, **item.to_json(), "index": item.index}
        save_picture(item.picture, out / item.file, notes)
    write_lines(out / "pictures.jsonl", (item.to_json() for item in painted))
    step = max(1, len(painted) // _SHEET)
    shown = painted[::step][:_SHEET]
    captions = [f"{p.prompt['prompt']}\n{'right' if p.score.correct else 'wrong'}" for p in shown]
    pairs = [(item.picture, text) for item, text in zip(shown, captions, strict=True)]
    captioned_sheet(pairs, columns=8).save(out / "sheet.png")


def save_answers(questions: list[Question], answers: list[str], out: Path) -> list[Json]:
    """One line per question, and the pictures of some of them."""
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
            save_picture(question.picture, out / record["file"], {"question": question.text})
        records.append(record)
    write_lines(out / "answers.jsonl", records)
    return records


def write_lines(path: Path, records: Iterable[Json]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def picture_scores(painted: list[Painted]) -> Json:
    """Right pictures per category; colour and shape of single objects apart, with their chance level."""
    categories = {tag: Tally() for tag in TAGS if any(p.prompt["tag"] == tag for p in painted)}
    everything, colour, shape = Tally(), Tally(), Tally()
    for item in painted:
        categories.setdefault(item.prompt["tag"], Tally()).add(item.score.correct)
        everything.add(item.score.correct)
        if item.single:
            shape.add(item.score.shape)
            if item.score.colour is not None:
                colour.add(item.score.colour)
    return {
        "prompts": everything.to_json(),
        "categories": {tag: tally.to_json() for tag, tally in categories.items()},
        "single_object_colour": {**colour.to_json(), "chance": 1 / len(COLOURS)},
        "single_object_shape": {**shape.to_json(), "chance": 1 / len(SHAPES)},
    }


def question_scores(records: list[Json]) -> Json:
    """Right answers per type of question; the total counts those with one right wording."""
    everything = Tally()
    kinds: dict[str, Tally] = {}
    for record in sorted(records, key=lambda record: record["type"]):
        kinds.setdefault(record["type"], Tally()).add(record["correct"])
        if record["type"] not in OPEN_ENDED:
            everything.add(record["correct"])
    return {
        "total": everything.to_json(),
        "types": {kind: tally.to_json() for kind, tally in kinds.items()},
    }


def table(scores: Json) -> Table:
    """All scores of one evaluation, for the terminal."""
    shown = Table(title=scores["settings"]["checkpoint"], title_justify="left")
    for heading in ("", "right", "of", "accuracy", "95 % interval", "chance"):
        shown.add_column(heading, justify="right" if heading else "left")
    rows = {**scores["categories"], "all prompts": scores["prompts"]}
    rows["colour of a single object"] = scores["single_object_colour"]
    rows["shape of a single object"] = scores["single_object_shape"]
    rows |= {f"question: {kind}": v for kind, v in scores["questions"]["types"].items()}
    rows["questions with one right answer"] = scores["questions"]["total"]
    for name, value in rows.items():
        if value["total"]:
            chance = f"{value['chance']:.1%}" if "chance" in value else ""
            interval = f"{value['low']:.1%} to {value['high']:.1%}"
            counts = [str(value["correct"]), str(value["total"])]
            shown.add_row(name, *counts, f"{value['accuracy']:.1%}", interval, chance)
    return shown
