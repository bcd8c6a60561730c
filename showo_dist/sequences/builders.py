"""One small builder per task: text ids and image codes in, an unpadded :class:`Sequence` out.

Layouts, cuts and labels are those of docs/specification.md, sections 3 to 5. M is the text budget
(``max_seq_length``), N the number of image tokens.
"""

import torch
from torch import Tensor

from showo_dist.sequences.masking import IGNORE, MaskedCodes
from showo_dist.sequences.sequence import Sequence
from showo_dist.sequences.vocabulary import Vocabulary
from showo_kernels import Span

# Width to which CLIP reconstruction pads all that stands before its second soi, the features left out.
CLIP_RECON_TEXT_WIDTH = 128


def _with_bos(text: list[int], vocabulary: Vocabulary) -> list[int]:
    return text if text[:1] == [vocabulary.bos] else [vocabulary.bos, *text]


def _image_ids(codes_N: Tensor, vocabulary: Vocabulary) -> list[int]:
    """Codes to ids; the code just past the codebook becomes the mask token."""
    return (codes_N + vocabulary.image_offset).tolist()


def _image_labels(
    masked: MaskedCodes, start: int, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, targets and weights of the supervised image tokens that begin at row ``start``."""
    places = (masked.labels_N != IGNORE).nonzero().flatten()
    weights = None if masked.weights_N is None else masked.weights_N[places]
    return places + start, masked.labels_N[places] + vocabulary.image_offset, weights


def _next_token_labels(
    ids: list[int], first: int, supervised: list[bool] | None = None
) -> tuple[Tensor, Tensor]:
    """Rows that predict the tokens ``ids[first:]``, each from the row before it."""
    targets = [
        i for i in range(max(first, 1), len(ids)) if supervised is None or supervised[i - first]
    ]
    rows = torch.tensor(targets, dtype=torch.int64) - 1
    return rows, torch.tensor([ids[i] for i in targets], dtype=torch.int64)


def _t2i_text(text: list[int], budget: int, vocabulary: Vocabulary) -> list[int]:
    """``t2i bos text eos``; too long: the first M tokens and eos."""
    full = [vocabulary.t2i, *_with_bos(text, vocabulary)]
    return [*full[:budget], vocabulary.eos]


def _t2i_spans(text: int, image: int) -> list[Span]:
    return [Span(text), Span(image + 2, bidirectional=True)]


def t2i(text: list[int], masked: MaskedCodes, budget: int, vocabulary: Vocabulary) -> Sequence:
    """``t2i bos text eos soi IMAGE eoi``: soi, the masked codes and eoi are predicted in place."""
    before = _t2i_text(text, budget, vocabulary)
    image = _image_ids(masked.inputs_N, vocabulary)
    ids = torch.tensor([*before, vocabulary.soi, *image, vocabulary.eoi])
    soi, eoi = len(before), len(ids) - 1
    rows, targets, weights = _image_labels(masked, soi + 1, vocabulary)
    if weights is not None:
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
    """Condition dropout: the text part is ``t2i bos eos``."""
    return t2i([], masked, 2, vocabulary)


def t2i_prompt(text: list[int], codes_N: Tensor, budget: int, vocabulary: Vocabulary) -> Sequence:
    """``t2i bos text eos soi IMAGE eoi`` for generation; masked places hold the code ``codebook``."""
    before = _t2i_text(text, budget, vocabulary)
    ids = torch.tensor([*before, vocabulary.soi, *_image_ids(codes_N, vocabulary), vocabulary.eoi])
    return Sequence(flow="t2i", ids_L=ids, spans=_t2i_spans(len(before), len(codes_N)))


def lm(text: list[int], length: int, vocabulary: Vocabulary) -> Sequence:
    """``bos text eos``, every token predicted from the ones before; cut at ``length`` without eos."""
    ids = [*_with_bos(text, vocabulary), vocabulary.eos][:length]
    rows, targets = _next_token_labels(ids, 1)
    return Sequence("lm", torch.tensor(ids), [Span(len(ids))], rows, targets)


def _mmu_image(
    codes_N: Tensor, vocabulary: Vocabulary, system: list[int] | None = None
) -> list[int]:
    start = [vocabulary.mmu, *(system or []), vocabulary.soi]
    return [*start, *_image_ids(codes_N, vocabulary), vocabulary.eoi]


def mmu_caption(text: list[int], codes_N: Tensor, budget: int, vocabulary: Vocabulary) -> Sequence:
    """``mmu soi IMAGE eoi bos text eos``; too long: the first M-1 tokens and eos. All text is predicted."""
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
    """``mmu soi IMAGE eoi text``: no bos; the answers are predicted.

    Args:
        text: ids of the whole conversation, cut at ``budget``.
        supervised: for each text id, whether it is (part of) an answer.
        system: ids of a system prompt between mmu and soi (``dataset.add_system_prompt``), usually none.
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
    """``mmu system soi CLIP eoi text``: CLIP rows are bidirectional and seen by the rows before them too.

    Args:
        system: ids of the system prompt; empty in the llava-pretrain phase.
        features_SC: CLIP features, S rows.
        length: longest sequence; the text is cut to fit.
    """
    before = [vocabulary.mmu, *system, vocabulary.soi]
    slots = len(features_SC)
    text = text[: max(0, length - len(before) - slots - 1)]
    ids = [*before, *[vocabulary.pad] * slots, vocabulary.eoi, *text]
    rows, targets = _next_token_labels(ids, len(ids) - len(text), supervised)
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
    """``mmu soi CONDITION eoi bos text eos soi IMAGE eoi``: only the masked codes are predicted."""
    condition = [vocabulary.soi, *_image_ids(condition_G, vocabulary), vocabulary.eoi]
    text = [*_with_bos(prompt, vocabulary), vocabulary.eos]
    image = [vocabulary.soi, *_image_ids(masked.inputs_N, vocabulary), vocabulary.eoi]
    start = 1 + len(condition) + len(text) + 1
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


def recon_clip(
    prompt: list[int],
    features_SC: Tensor,
    masked: MaskedCodes,
    vocabulary: Vocabulary,
    frozen_inputs: bool = False,
) -> Sequence:
    """``mmu soi CLIP eoi bos text eos soi IMAGE eoi``: soi and eoi of the image stay causal.

    The padding that the published layout has before the second soi is not computed; its places stay in
    the position ids.

    Raises:
        ValueError: the prompt does not fit in the padded text width.
    """
    slots = len(features_SC)
    text = [*_with_bos(prompt, vocabulary), vocabulary.eos]
    padding = CLIP_RECON_TEXT_WIDTH - 3 - len(text)
    if padding < 0:
        raise ValueError(
            f"reconstruction prompt of {len(prompt)} tokens: at most {len(prompt) + padding} fit"
        )
    image = _image_ids(masked.inputs_N, vocabulary)
    before = [vocabulary.mmu, vocabulary.soi, *[vocabulary.pad] * slots, vocabulary.eoi, *text]
    ids = torch.tensor([*before, vocabulary.soi, *image, vocabulary.eoi])
    positions = torch.arange(len(ids))
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
