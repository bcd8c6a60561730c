"""Build the samples of the golden set with the builders of ``showo_dist.sequences``."""

from types import SimpleNamespace

import torch
from torch import Tensor

from showo_dist.sequences import Sequence, TextEncoder, Vocabulary, builders
from showo_dist.sequences.masking import IGNORE, MaskedCodes
from showo_dist.sequences.text import SYSTEM_PROMPT


def masked_codes(codes_N: Tensor, mask_N: Tensor, codebook: int) -> MaskedCodes:
    """The masks of the golden set in place of sampled ones."""
    return MaskedCodes(
        inputs_N=torch.where(mask_N, codebook, codes_N),
        labels_N=torch.where(mask_N, codes_N, IGNORE),
        weights_N=None,
        rate=float(mask_N.float().mean()),
    )


def t2i(
    s: dict[str, Tensor],
    texts: dict[str, list[str]],
    enc: TextEncoder,
    voc: Vocabulary,
    meta: SimpleNamespace,
) -> list[Sequence]:
    return [
        builders.t2i(
            enc.encode(text),
            masked_codes(codes - voc.image_offset, mask, meta.code),
            meta.text_len,
            voc,
        )
        for text, codes, mask in zip(
            texts["captions"], s["t2i.codes"], s["t2i.masked"], strict=True
        )
    ]


def lm(
    texts: dict[str, list[str]], enc: TextEncoder, voc: Vocabulary, meta: SimpleNamespace
) -> list[Sequence]:
    length = meta.text_len + meta.img + 3
    return [builders.lm(enc.encode(text), length, voc) for text in texts["texts"]]


def mmu(
    s: dict[str, Tensor],
    texts: dict[str, list[str]],
    enc: TextEncoder,
    voc: Vocabulary,
    meta: SimpleNamespace,
) -> list[Sequence]:
    return [
        builders.mmu_caption(enc.encode(text), ids - voc.image_offset, meta.text_len, voc)
        for text, ids in zip(texts["chats"], s["mmu.image_ids"], strict=True)
    ]


def recon_vq(
    g: dict[str, Tensor], enc: TextEncoder, voc: Vocabulary, meta: SimpleNamespace
) -> list[Sequence]:
    rows = zip(
        meta.reca_vq_prompts,
        g["recon.condition_codes"],
        g["recon.target_codes"],
        g["recon.masked"],
        strict=True,
    )
    return [
        builders.recon_vq(
            enc.encode(prompt),
            condition - voc.image_offset,
            masked_codes(target - voc.image_offset, mask, meta.code),
            voc,
        )
        for prompt, condition, target, mask in rows
    ]


def mmu_clip(
    g: dict[str, Tensor], enc: TextEncoder, voc: Vocabulary, meta: SimpleNamespace
) -> list[Sequence]:
    system = enc.encode(SYSTEM_PROMPT)
    assert len(system) == meta.clip_system_tokens
    length = len(g["mmu.labels"][0])
    sequences = []
    for text, features in zip(meta.clip_conversations, g["mmu.clip_features"], strict=True):
        question, answer = text.removeprefix("USER: ").split(" ASSISTANT: ")
        turns = [("human", question), ("gpt", answer.removesuffix("<|endoftext|>"))]
        ids, supervised = enc.conversation(turns)
        assert ids == enc.encode(text)
        sequences.append(builders.mmu_clip(ids, supervised, system, features, length, voc))
    return sequences


def recon_clip(
    g: dict[str, Tensor],
    enc: TextEncoder,
    voc: Vocabulary,
    meta: SimpleNamespace,
    *,
    frozen: bool = False,
) -> list[Sequence]:
    rows = zip(
        meta.reca_vq_prompts,
        g["recon.clip_features"],
        g["recon.target_codes"],
        g["recon.masked"],
        strict=True,
    )
    return [
        builders.recon_clip(
            enc.encode(prompt),
            features,
            masked_codes(target - voc.image_offset, mask, meta.code),
            voc,
            frozen_inputs=frozen,
        )
        for prompt, features, target, mask in rows
    ]
