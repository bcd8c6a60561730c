"""Questions about held-out pictures of the mini world, with their true answers."""

import re
from dataclasses import dataclass
from glob import glob

from PIL import Image

from showo_data import FlowSpec, Sample, Source, vq_transform
from showo_dist.models.magvitv2.pictures import to_images

# What a question is about, by its words; the first that fits counts.
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
# Many phrasings are true of a picture, so an exact match says little: kept out of the total.
OPEN_ENDED = ("description", OTHER)


@dataclass(frozen=True, slots=True)
class MiniQuestion:
    """One question about one picture."""

    key: str
    picture: Image.Image
    text: str
    wanted: str

    @property
    def kind(self) -> str:
        """What it asks about: one of the types above."""
        return next((kind for words, kind in _TYPES.items() if words in self.text), OTHER)


def normalised(answer: str) -> str:
    """Lower case, single spaces, no stops or quotes around."""
    return re.sub(r"\s+", " ", answer.lower()).strip(" .!?\"'")


def read_questions(pattern: str, resolution: int, limit: int | None) -> list[MiniQuestion]:
    """Every round of the conversations in the shards, each as a question of its own.

    Args:
        pattern: shards, as a glob or brace pattern.
        resolution: side of the pictures in pixels.
        limit: pictures to read at most.

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
    (picture,) = to_images(sample.image_3HW[None])
    asked = sample.conversation[0::2]
    answered = sample.conversation[1::2]
    return [
        MiniQuestion(sample.key, picture, question.replace("<image>", "").strip(), wanted)
        for (_, question), (_, wanted) in zip(asked, answered, strict=False)
    ]
