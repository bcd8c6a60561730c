"""Scores of the mini world: correct images per category, correct answers per type of question.

Every count comes with its 95 % Wilson interval.
"""

import re
from dataclasses import dataclass
from glob import glob
from math import sqrt
from statistics import NormalDist

from PIL import Image
from rich.table import Table

from showo_data import FlowSpec, Sample, Source, vq_transform
from showo_data.images import to_images
from showo_data.mini import COLOURS, SHAPES, TAGS, Score
from showo_dist.evaluation.job import Json

_Z95 = NormalDist().inv_cdf(0.975)


def wilson(correct: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, 1927); (0, 1) when ``total`` is 0."""
    assert 0 <= correct <= total
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    middle = share + z * z / (2 * total)
    half = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


@dataclass
class Tally:
    """Counts correct ones among all."""

    correct: int = 0
    total: int = 0

    def add(self, correct: bool) -> None:
        self.correct += correct
        self.total += 1

    @property
    def accuracy(self) -> float | None:
        """Share of correct ones; None when none was counted."""
        return self.correct / self.total if self.total else None

    def to_json(self) -> dict[str, float | None]:
        """Counts, accuracy and its 95 % interval, as fractions."""
        low, high = wilson(self.correct, self.total)
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
        }


# Words in a question -> its type; the first match counts.
_TYPES = {
    "what is shown": "description",
    "how many": "count",
    "what color": "colour",
    "what shape": "shape",
    "is there": "presence",
    "small or large": "size",
    "where is": "place",
    "what is": "relation",
}
OTHER = "other"
# Many wordings of such an answer are correct, so an exact match says little: not part of the total.
OPEN_ENDED = ("description", OTHER)


@dataclass(frozen=True, slots=True)
class MiniQuestion:
    """One question about one image, with the wanted answer."""

    key: str
    image: Image.Image
    text: str
    wanted: str

    @property
    def kind(self) -> str:
        """Its type: one of the values of ``_TYPES``, or ``OTHER``."""
        return next((kind for words, kind in _TYPES.items() if words in self.text), OTHER)


def normalised(answer: str) -> str:
    """The answer in lower case, with single spaces, without punctuation or quotes around it."""
    return re.sub(r"\s+", " ", answer.lower()).strip(" .!?\"'")


def read_questions(pattern: str, resolution: int, limit: int | None) -> list[MiniQuestion]:
    """Read every round of the conversations in the shards as a question of its own.

    Args:
        pattern: shards, as a glob or brace pattern.
        resolution: side of the images in pixels.
        limit: the most images to read.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: the shards hold no samples.
    """
    urls = tuple(sorted(glob(pattern))) or (pattern,)
    spec = FlowSpec(
        flow="questions",
        kind="conversation",
        urls=urls,
        batch=1,
        transform=vq_transform(resolution),
        encoded=(),
        streams=1,
        window=1,
    )
    source = Source(spec)
    questions: list[MiniQuestion] = []
    for position in range(min(len(source), limit or len(source))):
        sample = source[position]
        if isinstance(sample, Sample):
            questions += _rounds(sample)
    return questions


def _rounds(sample: Sample) -> list[MiniQuestion]:
    assert sample.image_3HW is not None and sample.conversation is not None
    (image,) = to_images(sample.image_3HW[None])
    asked = sample.conversation[0::2]
    answered = sample.conversation[1::2]
    return [
        MiniQuestion(sample.key, image, question.replace("<image>", "").strip(), wanted)
        for (_, question), (_, wanted) in zip(asked, answered, strict=False)
    ]


@dataclass(frozen=True)
class Generated:
    """A generated image, its prompt, and the checker's verdict."""

    index: int
    prompt: Json
    image: Image.Image
    score: Score

    @property
    def file(self) -> str:
        return image_name(self.index)

    @property
    def single(self) -> bool:
        """Whether the prompt asks for exactly one object."""
        return [entry["count"] for entry in self.prompt["include"]] == [1]

    @property
    def only_colour(self) -> bool:
        """Whether objects are shown, in any number, and all of them have the one asked colour."""
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


def image_name(index: int) -> str:
    """Path of a prompt's image in the output folder."""
    return f"images/{index:05d}.png"


def image_scores(generated: list[Generated]) -> Json:
    """Correct images per category; colour and shape of single objects, with their chance level."""
    categories = {tag: Tally() for tag in TAGS if any(p.prompt["tag"] == tag for p in generated)}
    everything, colour, only_colour, shape = Tally(), Tally(), Tally(), Tally()
    for item in generated:
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
    """Correct answers per type of question; the total leaves the open-ended types out."""
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
    for heading in ("", "correct", "of", "accuracy", "95 % interval", "chance"):
        shown.add_column(heading, justify="right" if heading else "left")
    rows = {**scores["categories"], "all prompts": scores["prompts"]}
    rows["colour of a single object"] = scores["single_object_colour"]
    rows["no other colour, any number"] = scores["single_object_only_colour"]
    rows["shape of a single object"] = scores["single_object_shape"]
    rows |= {f"question: {kind}": v for kind, v in scores["questions"]["types"].items()}
    rows["questions with one correct answer"] = scores["questions"]["total"]
    for name, value in rows.items():
        if value["total"]:
            chance = f"{value['chance']:.1%}" if "chance" in value else ""
            interval = f"{value['low']:.1%} to {value['high']:.1%}"
            counts = [str(value["correct"]), str(value["total"])]
            shown.add_row(name, *counts, f"{value['accuracy']:.1%}", interval, chance)
    return shown
