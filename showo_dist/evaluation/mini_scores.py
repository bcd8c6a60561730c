"""Verdicts on the mini world, counted: pictures per category, answers per type of question."""

from dataclasses import dataclass
from typing import Any

from PIL import Image
from rich.table import Table

from showo_data.mini import COLOURS, SHAPES, TAGS, Score
from showo_dist.evaluation.questions import OPEN_ENDED
from showo_dist.evaluation.tally import Tally

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
        return picture_name(self.index)

    @property
    def single(self) -> bool:
        """Whether one single object was asked for."""
        return [entry["count"] for entry in self.prompt["include"]] == [1]

    @property
    def only_colour(self) -> bool:
        """Whether something is shown, and all of it, however much, in the one asked colour."""
        asked = {entry.get("color") for entry in self.prompt["include"]}
        return {thing.colour for thing in self.score.detected} == asked

    def to_json(self) -> Json:
        return {
            "file": self.file,
            "tag": self.prompt["tag"],
            "prompt": self.prompt["prompt"],
            "correct": self.score.correct,
            "reason": self.score.reason,
        }


def picture_name(index: int) -> str:
    """Where the picture of a prompt lies in the output folder."""
    return f"pictures/{index:05d}.png"


def picture_scores(painted: list[Painted]) -> Json:
    """Right pictures per category; colour and shape of single objects apart, with their chance level."""
    categories = {tag: Tally() for tag in TAGS if any(p.prompt["tag"] == tag for p in painted)}
    everything, colour, only_colour, shape = Tally(), Tally(), Tally(), Tally()
    for item in painted:
        categories.setdefault(item.prompt["tag"], Tally()).add(item.score.correct)
        everything.add(item.score.correct)
        if item.single:
            shape.add(item.score.shape)
            if item.score.colour is not None:
                colour.add(item.score.colour)
                only_colour.add(item.only_colour)
    return {
        "prompts": everything.to_json(),
        "categories": {tag: tally.to_json() for tag, tally in categories.items()},
        "single_object_colour": {**colour.to_json(), "chance": 1 / len(COLOURS)},
        "single_object_only_colour": {**only_colour.to_json(), "chance": 1 / len(COLOURS)},
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
    rows["no other colour, any number"] = scores["single_object_only_colour"]
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
