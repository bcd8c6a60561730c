"""Conversations with images as texts and images in the order in which the model reads them.

Texts and images in any order in one sequence: to be answered, or to be followed by a generated image.

One image and one text give exactly the sequences of training; anything else is the same layout carried
on, which no published model was trained for.
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
from showo_dist.sequences.text import END_OF_TEXT, IMAGE_MARKER, question_prompt
from showo_kernels import Span

Part = str | Image.Image
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side says: texts and images in their order."""

    role: Role
    parts: Seq[Part]


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
    """A conversation as texts and images.

    The images that a user's turn begins with stand before its ``USER:``, as in training.

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


# Text ids, int64 image codes (N,), or float CLIP features (S, C).
Piece = list[int] | Tensor


@dataclass
class _Row:
    """A sequence in the making."""

    vocabulary: Vocabulary
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    feature_rows: list[Tensor] = field(default_factory=list)

    def text(self, ids: Seq[int]) -> None:
        """Causal tokens; they lengthen a causal span that they follow."""
        self.ids += ids
        last = self.spans[-1] if self.spans else None
        if last is not None and not (last.bidirectional or last.is_global):
            self.spans[-1] = Span(last.length + len(ids))
        elif ids:
            self.spans.append(Span(len(ids)))

    def codes(self, codes_N: Tensor, joined: bool = False) -> None:
        """``soi IMAGE eoi``, bidirectional; ``joined``: together with all that stands before it."""
        image = [self.vocabulary.soi, *(codes_N + self.vocabulary.image_offset).tolist()]
        image.append(self.vocabulary.eoi)
        self.ids += image
        if joined:
            self.spans = [Span(len(self.ids), bidirectional=True)]
        else:
            self.spans.append(Span(len(image), bidirectional=True))

    def clip(self, features_SC: Tensor) -> None:
        """``soi CLIP eoi``: the features bidirectional, and those of the first image global, as trained.

        Later ones are not, so that nothing before them changes when they come.
        """
        self.text([self.vocabulary.soi])
        count = len(features_SC)
        self.feature_rows.append(torch.arange(len(self.ids), len(self.ids) + count))
        self.ids += [self.vocabulary.pad] * count
        self.spans.append(Span(count, True, is_global=not self.features))
        self.features.append(features_SC)
        self.text([self.vocabulary.eoi])

    def piece(self, piece: Piece, joined: bool = False) -> None:
        """A text or an image."""
        if not isinstance(piece, Tensor):
            self.text(piece)
        elif piece.is_floating_point():
            self.clip(piece)
        else:
            self.codes(piece, joined)

    def sequence(self, flow: str, positions_L: Tensor | None = None) -> Sequence:
        """The finished sequence."""
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
    """``mmu [system] (soi IMAGE eoi | text)…``, to be continued as text.

    Args:
        pieces: in the order in which they are read.
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
        row.piece(
            piece, joined=number == 0
        )  # codes at the start share their span with what precedes
    return row.sequence("mmu")


def image_prompt(
    pieces: Seq[Piece], codes_N: Tensor, budget: int, vocabulary: Vocabulary
) -> Sequence:
    """An image to generate behind texts and images.

    Text alone is ``t2i bos text eos soi IMAGE eoi``. With images it is the layout of reconstruction,
    ``mmu (soi CONDITION eoi | text)… eos soi IMAGE eoi``, bos before the first text.

    Args:
        pieces: in the order in which they are read.
        codes_N: the image's codes; places to generate hold the code ``codebook``.
        budget: text budget M of a prompt without images.
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
    """The image behind CLIP features: soi and eoi causal, after the place of the published padding."""
    before = len(row.ids)
    padding = max(0, CLIP_RECON_TEXT_WIDTH - before + sum(map(len, row.features)))
    row.text([row.vocabulary.soi])
    row.ids += (codes_N + row.vocabulary.image_offset).tolist()
    row.spans.append(Span(len(codes_N), bidirectional=True))
    row.text([row.vocabulary.eoi])
    positions_L = torch.arange(len(row.ids))
    positions_L[before:] += padding
    return row.sequence("recon", positions_L)
