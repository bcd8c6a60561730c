"""Token layouts of conversations: texts and images in any order, followed by an answer or by an image.

A conversation is a list of turns. :func:`flatten` turns it into texts and images in reading order;
:func:`~showo_dist.sequences.builders.answer_prompt` and :func:`image_prompt` turn the tokenized parts into a
sequence. These are the layouts of training. No published model was trained with several images.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from showo_dist.sequences import Sequence, Vocabulary
from showo_dist.sequences.builders import CLIP_RECON_TEXT_WIDTH, Piece, Row, t2i_prompt
from showo_dist.sequences.text import (
    IMAGE_MARKER,
    IMAGE_PLACE,
    ChatTemplate,
    Message,
    conversation_text,
    llava_question,
    plain,
    question_prompt,
)
from showo_kernels import Span

Part = str | Image.Image
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """The texts and images of one speaker, in order."""

    role: Role
    parts: Seq[Part]


@dataclass(frozen=True)
class Edit:
    """An image, and the instruction that says what to change in it."""

    image: Image.Image
    instruction: str


def user(*parts: Part) -> Turn:
    """Make a turn of the user."""
    return Turn("user", parts)


def assistant(*parts: Part) -> Turn:
    """Make a turn of the model."""
    return Turn("assistant", parts)


# Text around a question: that of LLaVA conversations (tuned models), or that of the published demo.
QUESTION_STYLES: dict[str, Callable[[str], str]] = {
    "llava": llava_question,
    "demo": question_prompt,
}


def flatten(turns: Iterable[Turn], style: str, end: str) -> list[Part]:
    """Return the texts and images of a conversation in reading order, with the marks of the speakers.

    Images at the beginning of a user's turn come before its ``USER:``, as in training.

    Args:
        turns: alternating turns; the last one is the user's if an answer follows.
        style: a key of :data:`QUESTION_STYLES`.
        end: the tokenizer's end of text, behind each answer.
    """
    messages, images = _messages(turns)
    text, _ = conversation_text(messages, QUESTION_STYLES[style], end)
    return _with_images(text, images)


def flatten_by_template(turns: Seq[Turn], template: ChatTemplate) -> list[Part]:
    """Return the texts and images of a conversation in reading order, laid out by a chat template.

    Images at the beginning of the conversation come before its text, as in training; all others are where
    they are in their turns.

    Args:
        turns: alternating turns; the last one is the user's if an answer follows.
        template: the tokenizer's.

    Raises:
        ValueError: the template cannot lay out the conversation.
    """
    messages, images = _messages(turns)
    text, _ = template.render(messages)
    return _with_images(text, images)


def _messages(turns: Iterable[Turn]) -> tuple[list[Message], list[Part]]:
    """Texts of the turns with marks in the places of the images, and the images."""
    messages: list[Message] = []
    images: list[Part] = []
    for turn in turns:
        images += [part for part in turn.parts if not isinstance(part, str)]
        words = [_plain(p) if isinstance(p, str) else IMAGE_PLACE for p in turn.parts]
        messages.append((turn.role, "".join(words)))
    return messages, images


def _plain(text: str) -> str:
    """Remove LLaVA's image marker, the marks of places and outer whitespace, as training does."""
    return plain(text.replace(IMAGE_MARKER, "")).strip()


def _with_images(text: str, images: Iterable[Part]) -> list[Part]:
    """Texts and images in turn; empty texts are left out."""
    first, *rest = text.split(IMAGE_PLACE)
    between = [part for pair in zip(images, rest, strict=True) for part in pair]
    return [part for part in (first, *between) if part != ""]


def image_prompt(
    pieces: Seq[Piece], codes_N: Tensor, budget: int, vocabulary: Vocabulary
) -> Sequence:
    """Return a sequence of texts and images that ends with the image to generate.

    Text alone gives ``t2i bos text eos soi IMAGE eoi``. With images the layout is that of reconstruction:
    ``mmu (soi CONDITION eoi | text)… eos soi IMAGE eoi``, with bos before the first text.

    Args:
        pieces: texts and images in reading order.
        codes_N: the image's codes; places to generate hold the code ``codebook``.
        budget: most tokens of a prompt without images, task token and bos included.
        vocabulary: the model's ids.
    """
    if not any(isinstance(piece, Tensor) for piece in pieces):
        text = [token for piece in pieces for token in piece]
        return t2i_prompt(text, codes_N, budget, vocabulary)
    row = Row(vocabulary)
    row.text([vocabulary.mmu])
    start_of_text = [vocabulary.bos]
    for number, piece in enumerate(pieces):
        if isinstance(piece, list):
            piece, start_of_text = [*start_of_text, *piece], []
        row.piece(piece, first=number == 0)
    row.text([*start_of_text, vocabulary.eos])
    if row.features:
        return _clip_canvas(row, codes_N)
    row.codes(codes_N)
    return row.sequence("recon")


def _clip_canvas(row: Row, codes_N: Tensor) -> Sequence:
    """Append the image to generate after CLIP features, with causal soi and eoi.

    Its position ids skip the padding that the published code puts between the text and the image.
    """
    before = len(row.ids)
    padding = max(0, CLIP_RECON_TEXT_WIDTH - before + sum(map(len, row.features)))
    row.text([row.vocabulary.soi])
    row.ids += (codes_N + row.vocabulary.image_offset).tolist()
    row.spans.append(Span(len(codes_N), bidirectional=True))
    row.text([row.vocabulary.eoi])
    positions_L = torch.arange(len(row.ids))
    positions_L[before:] += padding
    return row.sequence("recon", positions_L)
