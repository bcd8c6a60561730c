"""One builder per task: from text ids and image codes to an unpadded :class:`Sequence`.

:class:`Row` and :func:`answer_prompt` lay out texts and images in any order, for training and generation.

Token layout, truncation and labels are those of docs/specification.md, sections 3 to 5. ``budget`` is the
largest number of text tokens (``max_seq_length``); an image has N tokens, a condition image G, and CLIP
features fill S rows. Attention spans are causal unless they are marked bidirectional.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from showo_dist.sequences.masking import IGNORE, MaskedCodes
from showo_dist.sequences.pack import Sequence
from showo_dist.sequences.text import Words
from showo_dist.sequences.vocabulary import Vocabulary
from showo_kernels import Span

# The published CLIP reconstruction pads everything before its second soi, except the features, to this width.
CLIP_RECON_TEXT_WIDTH = 128


# Text ids, int64 image codes (N,), or float CLIP features (S, C).
Piece = list[int] | Tensor


@dataclass
class Row:
    """Builds a sequence part by part."""

    vocabulary: Vocabulary
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    feature_rows: list[Tensor] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)

    def text(self, ids: Seq[int], supervised: Seq[bool] = ()) -> None:
        """Append causal tokens; they extend a causal span that they follow."""
        self.predicted += [len(self.ids) + i for i, counts in enumerate(supervised) if counts]
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

    def clip(self, features_SC: Tensor, is_global: bool = False) -> None:
        """Append ``soi CLIP eoi`` with a bidirectional span for the features (S, C), global on request."""
        self.text([self.vocabulary.soi])
        count = len(features_SC)
        self.feature_rows.append(torch.arange(len(self.ids), len(self.ids) + count))
        self.ids += [self.vocabulary.pad] * count
        self.spans.append(Span(count, True, is_global))
        self.features.append(features_SC)
        self.text([self.vocabulary.eoi])

    def piece(self, piece: Words | Piece, first: bool = False, joined: bool = False) -> None:
        """Append a text or an image.

        Args:
            piece: to append.
            first: CLIP features become global. Only an image before all texts may be: one behind a text must
                not change the keys and values of that text, nor show what follows it.
            joined: as in :meth:`codes`.
        """
        if isinstance(piece, Words):
            self.text(*piece)
        elif not isinstance(piece, Tensor):
            self.text(piece)
        elif piece.is_floating_point():
            self.clip(piece, first)
        else:
            self.codes(piece, joined)

    def sequence(self, flow: str, positions_L: Tensor | None = None) -> Sequence:
        """Return the finished sequence."""
        ids_L = torch.tensor(self.ids)
        predicted_P = torch.tensor(self.predicted, dtype=torch.int64)
        one = len(self.features) == 1
        return Sequence(
            flow=flow,
            ids_L=ids_L,
            spans=self.spans,
            # The logits of a row predict the token of the next row.
            label_rows_P=predicted_P - 1,
            targets_P=ids_L[predicted_P],
            position_ids_L=positions_L,
            features_SC=torch.cat(self.features) if self.features else None,
            feature_start=int(self.feature_rows[0][0]) if one else 0,
            feature_rows_S=torch.cat(self.feature_rows) if self.features and not one else None,
        )


def answer_prompt(
    pieces: Seq[Words | Piece], vocabulary: Vocabulary, system: Seq[int] = (), *, bos: bool = False
) -> Sequence:
    """Return ``mmu [system] (soi IMAGE eoi | text)…``, a prompt that an answer continues, or all of it.

    Args:
        pieces: texts and images in reading order; of :class:`Words`, the supervised ones are predicted.
        vocabulary: the model's ids.
        system: ids of a system prompt.
        bos: put bos before the first text (the published question prompt).
    """
    row = Row(vocabulary)
    row.text([vocabulary.mmu, *system])
    start_of_text = [vocabulary.bos] if bos else []
    for number, piece in enumerate(pieces):
        if isinstance(piece, list):
            piece, start_of_text = [*start_of_text, *piece], []
        # Codes at the beginning share their span with mmu and the system prompt, as in training.
        row.piece(piece, first=number == 0, joined=number == 0)
    return row.sequence("mmu")


def around(texts: Seq[Words], images: Seq[Tensor]) -> list[Words | Tensor]:
    """Texts and images in reading order: a text is before the first image, one behind each; empty ones not.

    Images behind the last text are left out.
    """
    pieces: list[Words | Tensor] = [texts[0]]
    for image, words in zip(images, texts[1:], strict=False):
        pieces += [image, words]
    return [piece for piece in pieces if not isinstance(piece, Words) or piece.ids]


def cut(pieces: Seq[Words | Tensor], budget: int) -> list[Words | Tensor]:
    """The first ``budget`` tokens of the texts, and the images before the end of these."""
    kept: list[Words | Tensor] = []
    for piece in pieces:
        if isinstance(piece, Words):
            piece = piece.cut(budget)
            budget -= len(piece.ids)
        kept.append(piece)
        if isinstance(piece, Words) and not budget:
            break
    return kept


def _with_bos(text: list[int], vocabulary: Vocabulary) -> list[int]:
    return text if text[:1] == [vocabulary.bos] else [vocabulary.bos, *text]


def _image_ids(codes_N: Tensor, vocabulary: Vocabulary) -> list[int]:
    """Codes to ids; the code one past the codebook becomes the mask token."""
    return (codes_N + vocabulary.image_offset).tolist()


def _image_labels(
    masked: MaskedCodes, start: int, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, target ids and weights of the supervised tokens of an image that begins at row ``start``.

    Masked tokens are predicted in place: the row that holds the mask token predicts its own code.
    """
    places = (masked.labels_N != IGNORE).nonzero().flatten()
    weights = None if masked.weights_N is None else masked.weights_N[places]
    return places + start, masked.labels_N[places] + vocabulary.image_offset, weights


def _t2i_text(text: list[int], budget: int, vocabulary: Vocabulary) -> list[int]:
    """``t2i bos text eos``; at most ``budget`` tokens (t2i and bos included) are kept before eos."""
    # The published cut counts t2i and bos, but not eos: a full text part has budget + 1 tokens.
    full = [vocabulary.t2i, *_with_bos(text, vocabulary)]
    return [*full[:budget], vocabulary.eos]


def _t2i_spans(text: int, image: int) -> list[Span]:
    return [Span(text), Span(image + 2, bidirectional=True)]


def t2i(text: list[int], masked: MaskedCodes, budget: int, vocabulary: Vocabulary) -> Sequence:
    """Text to image, ``t2i bos text eos soi IMAGE eoi``.

    The masked codes are predicted, and soi and eoi too, as published; all of them in place.
    """
    before = _t2i_text(text, budget, vocabulary)
    image = _image_ids(masked.inputs_N, vocabulary)
    ids = torch.tensor([*before, vocabulary.soi, *image, vocabulary.eoi])
    soi, eoi = len(before), len(ids) - 1
    rows, targets, weights = _image_labels(masked, soi + 1, vocabulary)
    if weights is not None:  # soi and eoi count like masked tokens
        weights = torch.cat([weights.new_ones(1), weights, weights.new_ones(1)])
    return Sequence(
        flow="t2i",
        ids_L=ids,
        spans=_t2i_spans(len(before), len(image)),
        label_rows_P=torch.cat([torch.tensor([soi]), rows, torch.tensor([eoi])]),
        targets_P=torch.cat([ids[[soi]], targets, ids[[eoi]]]),
        weights_P=weights,
        masking_rate=masked.rate,
    )


def t2i_dropped(masked: MaskedCodes, vocabulary: Vocabulary) -> Sequence:
    """Text to image after condition dropout: the text part is ``t2i bos eos``."""
    return t2i([], masked, 2, vocabulary)


def t2i_prompt(text: list[int], codes_N: Tensor, budget: int, vocabulary: Vocabulary) -> Sequence:
    """The layout of :func:`t2i` without labels, for generation; masked tokens have the code ``codebook``."""
    before = _t2i_text(text, budget, vocabulary)
    ids = torch.tensor([*before, vocabulary.soi, *_image_ids(codes_N, vocabulary), vocabulary.eoi])
    return Sequence(flow="t2i", ids_L=ids, spans=_t2i_spans(len(before), len(codes_N)))


def lm(text: list[int], length: int, vocabulary: Vocabulary) -> Sequence:
    """Language modelling, ``bos text eos``: every token but bos is predicted.

    A longer text is cut to ``length`` tokens and then has no eos.
    """
    ids_L = torch.tensor([*_with_bos(text, vocabulary), vocabulary.eos][:length])
    # The logits of a row predict the token of the next row.
    rows = torch.arange(len(ids_L) - 1)
    return Sequence("lm", ids_L, [Span(len(ids_L))], rows, ids_L[1:])


def mmu_caption(text: list[int], codes_N: Tensor, budget: int, vocabulary: Vocabulary) -> Sequence:
    """Captioning, ``mmu soi IMAGE eoi bos text eos``: bos, text and eos are predicted.

    A longer text is cut to ``budget`` tokens, bos and eos included.
    """
    answer = [*_with_bos(text, vocabulary)[: budget - 1], vocabulary.eos]
    return answer_prompt([codes_N, Words(answer, [True] * len(answer))], vocabulary)


def mmu_llava(
    text: list[int],
    supervised: list[bool],
    codes_N: Tensor,
    budget: int,
    vocabulary: Vocabulary,
    system: list[int] | None = None,
) -> Sequence:
    """A conversation about an image, ``mmu system soi IMAGE eoi text``: the answers are predicted.

    Args:
        text: ids of the whole conversation without bos, cut to ``budget`` tokens.
        supervised: for each text id, whether it belongs to an answer.
        system: ids of a system prompt (``dataset.add_system_prompt``); None for none, the usual case.
    """
    pieces = cut([codes_N, Words(text, supervised)], budget)
    return answer_prompt(pieces, vocabulary, system or ())


def mmu_clip(
    text: list[int],
    supervised: list[bool],
    system: list[int],
    features_SC: Tensor,
    length: int,
    vocabulary: Vocabulary,
) -> Sequence:
    """A conversation about CLIP features, ``mmu system soi CLIP eoi text``: the answers are predicted.

    The CLIP rows see each other, and the rows before them see them too.

    Args:
        text: ids of the whole conversation without bos.
        supervised: for each text id, whether it belongs to an answer.
        system: ids of the system prompt; empty in the llava-pretrain phase.
        features_SC: CLIP features.
        length: maximum length of the sequence; the text is cut to fit.
    """
    budget = max(0, length - 3 - len(system) - len(features_SC))  # 3 for mmu, soi and eoi
    pieces = cut([features_SC, Words(text, supervised)], budget)
    return answer_prompt(pieces, vocabulary, system)


def recon_vq(
    prompt: list[int], condition_G: Tensor, masked: MaskedCodes, vocabulary: Vocabulary
) -> Sequence:
    """RecA on image codes, ``mmu soi CONDITION eoi bos prompt eos soi IMAGE eoi``.

    Both images are bidirectional, soi and eoi included. Only the masked codes are predicted.
    """
    condition = [vocabulary.soi, *_image_ids(condition_G, vocabulary), vocabulary.eoi]
    text = [*_with_bos(prompt, vocabulary), vocabulary.eos]
    image = [vocabulary.soi, *_image_ids(masked.inputs_N, vocabulary), vocabulary.eoi]
    start = 1 + len(condition) + len(text) + 1  # the first image code; the ones are mmu and soi
    rows, targets, weights = _image_labels(masked, start, vocabulary)
    return Sequence(
        flow="recon",
        ids_L=torch.tensor([vocabulary.mmu, *condition, *text, *image]),
        spans=[Span(1), Span(len(condition), True), Span(len(text)), Span(len(image), True)],
        label_rows_P=rows,
        targets_P=targets,
        weights_P=weights,
        masking_rate=masked.rate,
    )


def edit(
    instruction: list[int],
    source_N: Tensor,
    masked: MaskedCodes,
    budget: int,
    vocabulary: Vocabulary,
) -> Sequence:
    """An edit, ``mmu soi SOURCE eoi bos instruction eos soi IMAGE eoi``: :func:`recon_vq` at full resolution.

    A longer instruction is cut to ``budget`` tokens, bos and eos included. Condition dropout leaves it empty.
    """
    budget = max(budget, 2)  # bos and eos always remain
    text = _with_bos(instruction, vocabulary)[: budget - 1]
    row = recon_vq(text, source_N, masked, vocabulary)
    # As if the instruction were padded to the budget on its left, so that each code of the image is at one
    # distance from the source's code of its place, whatever the instruction: a head can copy by position.
    positions = torch.arange(len(row))
    positions[len(source_N) + 3 :] += budget - len(text) - 1  # 3 for mmu, soi and eoi; 1 for eos
    return replace(row, flow="edit", position_ids_L=positions)


def edit_prompt(
    instruction: list[int], source_N: Tensor, codes_N: Tensor, budget: int, vocabulary: Vocabulary
) -> Sequence:
    """The layout of :func:`edit` without labels, for generation; masked tokens have the code ``codebook``."""
    unlabelled = MaskedCodes(codes_N, torch.full_like(codes_N, IGNORE), None, 1.0)
    return edit(instruction, source_N, unlabelled, budget, vocabulary)


def recon_clip(
    prompt: list[int],
    features_SC: Tensor,
    masked: MaskedCodes,
    vocabulary: Vocabulary,
    frozen_inputs: bool = False,
) -> Sequence:
    """RecA on CLIP features, ``mmu soi CLIP eoi bos prompt eos soi IMAGE eoi``.

    The CLIP rows and the image are bidirectional; the image's soi and eoi are causal, unlike in
    :func:`recon_vq`. Only the masked codes are predicted.

    Args:
        frozen_inputs: no gradient flows into the inputs (``compat: reference``).

    Raises:
        ValueError: the prompt is longer than the published text width.
    """
    slots = len(features_SC)
    text = [*_with_bos(prompt, vocabulary), vocabulary.eos]
    padding = CLIP_RECON_TEXT_WIDTH - 3 - len(text)  # 3 for mmu, soi and eoi
    if padding < 0:
        raise ValueError(
            f"reconstruction prompt of {len(prompt)} tokens: at most {len(prompt) + padding} fit"
        )
    image = _image_ids(masked.inputs_N, vocabulary)
    before = [vocabulary.mmu, vocabulary.soi, *[vocabulary.pad] * slots, vocabulary.eoi, *text]
    ids = torch.tensor([*before, vocabulary.soi, *image, vocabulary.eoi])
    positions = torch.arange(len(ids))
    # The published layout has padding before the second soi. It is not computed here, but the position ids
    # skip its places, so that rotary distances to the image are the published ones.
    positions[len(before) :] += padding
    rows, targets, weights = _image_labels(masked, len(before) + 1, vocabulary)
    return Sequence(
        flow="recon",
        ids_L=ids,
        spans=[
            Span(2),
            Span(slots, True, True),
            Span(2 + len(text)),
            Span(len(image), True),
            Span(1),
        ],
        label_rows_P=rows,
        targets_P=targets,
        weights_P=weights,
        position_ids_L=positions,
        features_SC=features_SC,
        feature_start=2,
        frozen_inputs=frozen_inputs,
        masking_rate=masked.rate,
    )
