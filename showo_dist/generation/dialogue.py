"""Conversations with pictures as texts and pictures in the order in which the model reads them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from showo_dist.sequences.text import END_OF_TEXT, IMAGE_MARKER, question_prompt

Part = str | Image.Image
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side says: texts and pictures in their order."""

    role: Role
    parts: Sequence[Part]


def user(*parts: Part) -> Turn:
    """A turn of the user."""
    return Turn("user", parts)


def assistant(*parts: Part) -> Turn:
    """A turn of the model."""
    return Turn("assistant", parts)


def _llava_question(text: str) -> str:
    return f"USER: {text} ASSISTANT:"


# How questions are put: as in LLaVA conversations (tuned models), or as the published demo does.
QUESTION_STYLES: dict[str, Callable[[str], str]] = {
    "llava": _llava_question,
    "demo": question_prompt,
}


def flatten(turns: Iterable[Turn], style: str) -> list[Part]:
    """A conversation as texts and pictures.

    The pictures that a user's turn begins with stand before its ``USER:``, as in training.

    Args:
        turns: alternating; the last one is the user's when an answer is wanted.
        style: one of :data:`QUESTION_STYLES`.
    """
    parts: list[Part] = []
    for turn in turns:
        said = _joined([_plain(p) if isinstance(p, str) else p for p in turn.parts])
        if turn.role == "assistant":
            parts += [" ", *said, END_OF_TEXT]
            continue
        while said and not isinstance(said[0], str):
            parts.append(said.pop(0))
        before, after = _around(QUESTION_STYLES[style])
        parts += [before, *said, after]
    return _joined(parts)


def _plain(text: str) -> str:
    return text.replace(IMAGE_MARKER, "").strip()


def _around(question: Callable[[str], str]) -> tuple[str, str]:
    """What stands before and behind the words of a question."""
    before, _, after = question("\0").partition("\0")
    return before, after


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts as one, empty ones left out: a text is tokenized as a whole."""
    joined: list[Part] = []
    for part in parts:
        if part == "":
            continue
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
