"""One builder per task: from text ids and image codes to an unpadded :class:`Sequence`.

Token layout, truncation and labels are those of docs/specification.md, sections 3 to 5. ``budget`` is the
largest number of text tokens (``max_seq_length``); an image has N tokens, a condition image G, and CLIP
features fill S rows. Attention spans are causal unless they are marked bidirectional.
"""

from dataclasses import replace

import torch
from torch import Tensor

from showo_dist.sequences.masking import IGNORE, MaskedCodes
from showo_dist.sequences.pack import Sequence
from showo_dist.sequences.vocabulary import Vocabulary
from showo_kernels import Span

# The published CLIP reconstruction pads everything before its second soi, except the features, to this width.
CLIP_RECON_TEXT_WIDTH = 128


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


def _next_token_labels(
    ids: list[int], first: int, supervised: list[bool] | None = None
) -> tuple[Tensor, Tensor]:
    """Rows and target ids for next-token prediction of ``ids[first:]``, each token from the row before it.

    Args:
        ids: of the whole sequence.
        first: index of the first token to predict.
        supervised: for each token from ``first`` on, whether it is predicted; None means all.
    """
    targets = [
        i for i in range(max(first, 1), len(ids)) if supervised is None or supervised[i - first]
    ]
    # The logits of a row predict the token of the next row.
    rows = torch.tensor(targets, dtype=torch.int64) - 1
    return rows, torch.tensor([ids[i] for i in targets], dtype=torch.int64)


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
    ids = [*_with_bos(text, vocabulary), vocabulary.eos][:length]
    rows, targets = _next_token_labels(ids, 1)
    return Sequence("lm", torch.tensor(ids), [Span(len(ids))], rows, targets)


def _mmu_image(
    codes_N: Tensor, vocabulary: Vocabulary, system: list[int] | None = None
) -> list[int]:
    start = [vocabulary.mmu, *(system or []), vocabulary.soi]
    return [*start, *_image_ids(codes_N, vocabulary), vocabulary.eoi]


def mmu_caption(text: list[int], codes_N: Tensor, budget: int, vocabulary: Vocabulary) -> Sequence:
    """Captioning, ``mmu soi IMAGE eoi bos text eos``: bos, text and eos are predicted.

    A longer text is cut to ``budget`` tokens, bos and eos included.
    """
    before = _mmu_image(codes_N, vocabulary)
    answer = [*_with_bos(text, vocabulary)[: budget - 1], vocabulary.eos]
    ids = before + answer
    rows, targets = _next_token_labels(ids, len(before))
    spans = [Span(len(before), bidirectional=True), Span(len(answer))]
    return Sequence("mmu", torch.tensor(ids), spans, rows, targets)


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
    before = _mmu_image(codes_N, vocabulary, system)
    text = text[:budget]
    ids = before + text
    rows, targets = _next_token_labels(ids, len(before), supervised)
    spans = [Span(len(before), bidirectional=True), Span(len(text))]
    return Sequence("mmu", torch.tensor(ids), [s for s in spans if s.length], rows, targets)


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
    before = [vocabulary.mmu, *system, vocabulary.soi]
    slots = len(features_SC)
    text = text[: max(0, length - len(before) - slots - 1)]  # 1 for eoi
    # The pad ids only keep the rows of the features; the packed batch never looks them up.
    ids = [*before, *[vocabulary.pad] * slots, vocabulary.eoi, *text]
    rows, targets = _next_token_labels(ids, len(ids) - len(text), supervised)
    # bidirectional, and global: visible to the rows before it as well
    spans = [Span(len(before)), Span(slots, True, True), Span(1 + len(text))]
    return Sequence(
        "mmu",
        torch.tensor(ids),
        spans,
        rows,
        targets,
        features_SC=features_SC,
        feature_start=len(before),
    )


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
