"""Token layouts of conversations: texts and images in any order, followed by an answer or by an image.

A conversation is a list of turns. :func:`flatten` turns it into texts and images in reading order;
:func:`answer_prompt` and :func:`image_prompt` turn the tokenized parts into a sequence. One image and one
text give exactly the sequences of training. Everything else extends the same layout, and no published model
was trained for it.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from showo_dist.sequences import Sequence, Vocabulary
from showo_dist.sequences.builders import CLIP_RECON_TEXT_WIDTH, t2i_prompt
from showo_dist.sequences.text import (
    IMAGE_MARKER,
    IMAGE_PLACE,
    ChatTemplate,
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


def _llava_question(text: str) -> str:
    return f"USER: {text} ASSISTANT:"


# Text around a question: that of LLaVA conversations (tuned models), or that of the published demo.
QUESTION_STYLES: dict[str, Callable[[str], str]] = {
    "llava": _llava_question,
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
    parts: list[Part] = []
    for turn in turns:
        content = _joined([_plain(p) if isinstance(p, str) else p for p in turn.parts])
        if turn.role == "assistant":
            parts += [" ", *content, end]
            continue
        while content and not isinstance(content[0], str):
            parts.append(content.pop(0))
        before, after = _around(QUESTION_STYLES[style])
        parts += [before, *content, after]
    return _joined(parts)


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
    images: list[Part] = []
    messages = []
    for turn in turns:
        images += [part for part in turn.parts if not isinstance(part, str)]
        words = [plain(_plain(p)) if isinstance(p, str) else IMAGE_PLACE for p in turn.parts]
        messages.append((turn.role, "".join(words)))
    role, first = messages[0]
    text, _ = template.render([(role, first.lstrip(IMAGE_PLACE)), *messages[1:]])
    leading = len(first) - len(first.lstrip(IMAGE_PLACE))
    parts, places = images[:leading], text.split(IMAGE_PLACE)
    parts.append(places[0])
    for image, after in zip(images[leading:], places[1:], strict=True):
        parts += [image, after]
    return _joined(parts)


def _plain(text: str) -> str:
    """Remove LLaVA's image marker and outer whitespace, as training does."""
    return text.replace(IMAGE_MARKER, "").strip()


def _around(question: Callable[[str], str]) -> tuple[str, str]:
    """Return the texts before and after the words of a question."""
    before, _, after = question("\0").partition("\0")
    return before, after


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Concatenate adjacent texts and drop empty ones: training tokenizes such a text as a whole."""
    joined: list[Part] = []
    for part in parts:
        if part == "":
            continue
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


# Text ids, int64 image codes (N,), or float CLIP features (S, C).
Piece = list[int] | Tensor


@dataclass
class _Row:
    """Builds a sequence part by part."""

    vocabulary: Vocabulary
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    feature_rows: list[Tensor] = field(default_factory=list)

    def text(self, ids: Seq[int]) -> None:
        """Append causal tokens; they extend a causal span that they follow."""
        self.ids += ids
        last = self.spans[-1] if self.spans else None
        if last is not None and not (last.bidirectional or last.is_global):
            self.spans[-1] = Span(last.length + len(ids))
        elif ids:
            self.spans.append(Span(len(ids)))

    def codes(self, codes_N: Tensor, joined: bool = False) -> None:
        """Append ``soi IMAGE eoi`` as a bidirectional span.

        Args:
            codes_N: int64 image codes.
            joined: extend the span to everything before the image.
        """
        image = [self.vocabulary.soi, *(codes_N + self.vocabulary.image_offset).tolist()]
        image.append(self.vocabulary.eoi)
        self.ids += image
        if joined:
            self.spans = [Span(len(self.ids), bidirectional=True)]
        else:
            self.spans.append(Span(len(image), bidirectional=True))

    def clip(self, features_SC: Tensor) -> None:
        """Append ``soi CLIP eoi`` with a bidirectional span for the features (S, C).

        The features of the first image are global, as in training. Those of later images are not, so that
        appending an image does not change the keys and values of the rows before it.
        """
        self.text([self.vocabulary.soi])
        count = len(features_SC)
        self.feature_rows.append(torch.arange(len(self.ids), len(self.ids) + count))
        self.ids += [self.vocabulary.pad] * count
        self.spans.append(Span(count, True, is_global=not self.features))
        self.features.append(features_SC)
        self.text([self.vocabulary.eoi])

    def piece(self, piece: Piece, joined: bool = False) -> None:
        """Append a text or an image."""
        if not isinstance(piece, Tensor):
            self.text(piece)
        elif piece.is_floating_point():
            self.clip(piece)
        else:
            self.codes(piece, joined)

    def sequence(self, flow: str, positions_L: Tensor | None = None) -> Sequence:
        """Return the finished sequence."""
        return Sequence(
            flow=flow,
            ids_L=torch.tensor(self.ids),
            spans=self.spans,
            position_ids_L=positions_L,
            features_SC=torch.cat(self.features) if self.features else None,
            feature_rows_S=torch.cat(self.feature_rows) if self.features else None,
        )


def answer_prompt(
    pieces: Seq[Piece], vocabulary: Vocabulary, system: Seq[int] = (), *, bos: bool = False
) -> Sequence:
    """Return ``mmu [system] (soi IMAGE eoi | text)…``, which an answer continues.

    Args:
        pieces: texts and images in reading order.
        vocabulary: the model's ids.
        system: ids of a system prompt.
        bos: put bos before the first text (the published question prompt).
    """
    row = _Row(vocabulary)
    row.text([vocabulary.mmu, *system])
    start_of_text = [vocabulary.bos] if bos else []
    for number, piece in enumerate(pieces):
        if isinstance(piece, list):
            piece, start_of_text = [*start_of_text, *piece], []
        # Codes at the beginning share their span with mmu and the system prompt, as in training.
        row.piece(piece, joined=number == 0)
    return row.sequence("mmu")


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
    row = _Row(vocabulary)
    row.text([vocabulary.mmu])
    start_of_text = [vocabulary.bos]
    for piece in pieces:
        if isinstance(piece, list):
            piece, start_of_text = [*start_of_text, *piece], []
        row.piece(piece)
    row.text([*start_of_text, vocabulary.eos])
    if row.features:
        return _clip_canvas(row, codes_N)
    row.codes(codes_N)
    return row.sequence("recon")


def _clip_canvas(row: _Row, codes_N: Tensor) -> Sequence:
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
