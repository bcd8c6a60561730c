"""Global batches of a tiny model with a CLIP projector, and the ways to split them over ranks."""

import numpy as np
import torch

from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import ShowO, build_showo
from showo_dist.sequences import Sequence, Vocabulary, builders
from showo_dist.sequences.masking import MaskingOptions, mask_codes, mask_schedule, sample_rng
from showo_kernels import select_backend
from tests.families import llm_config
from tests.single_pass.case import FLOW_ORDER

VOCABULARY = Vocabulary(text=53, codebook=32, bos=0)
FEATURES, FEATURE_WIDTH, IMAGE, BUDGET = 6, 12, 9, 16
MASKING = MaskingOptions(mask_schedule("cosine"))
PER_FLOW = 4


PLAIN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tiny_sizes(family: str | None = None) -> ShowoConfig:
    """A two-layer model of a family in :mod:`tests.families`, by default a plain Phi."""
    return ShowoConfig(
        vocab_size=VOCABULARY.size,
        llm_vocab_size=VOCABULARY.text,
        codebook_size=VOCABULARY.codebook,
        w_clip_vit=True,
        clip_dim=FEATURE_WIDTH,
        llm_config=llm_config(family) if family else PLAIN,
    )


def build_tiny(seed: int = 0, family: str | None = None) -> ShowO:
    """A tiny model with random weights."""
    return build_noisy(tiny_sizes(family), seed)


def build_noisy(sizes: ShowoConfig, seed: int = 0) -> ShowO:
    """A model with random weights; noise moves every parameter away from an initial 0 or 1."""
    torch.manual_seed(seed)
    model = build_showo(sizes, attention=select_backend("auto", "cpu")[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _text(rng: np.random.Generator, shortest: int, longest: int) -> list[int]:
    return rng.integers(1, VOCABULARY.text, size=rng.integers(shortest, longest + 1)).tolist()


def sequence(flow: str, position: int, seed: int = 0) -> Sequence:
    """Sample ``position`` of a flow; lengths and label counts differ from sample to sample."""
    rng = sample_rng(seed, flow, position)
    text = _text(rng, 2, BUDGET)
    features_SC = torch.from_numpy(rng.standard_normal((FEATURES, FEATURE_WIDTH), np.float32))
    masked = mask_codes(
        torch.from_numpy(rng.integers(VOCABULARY.codebook, size=IMAGE)),
        VOCABULARY.codebook,
        MASKING,
        rng,
    )
    if flow == "mmu":
        supervised = [False, *[True] * (len(text) - 1)]
        return builders.mmu_clip(text, supervised, _text(rng, 3, 3), features_SC, 64, VOCABULARY)
    if flow == "recon":
        return builders.recon_clip(text, features_SC, masked, VOCABULARY)
    if flow == "lm":
        return builders.lm(text, BUDGET, VOCABULARY)
    if flow == "edit":
        source = torch.from_numpy(rng.integers(VOCABULARY.codebook, size=IMAGE))
        return builders.edit(text, source, masked, BUDGET, VOCABULARY)
    return builders.t2i(text, masked, BUDGET, VOCABULARY)


def global_batch(seed: int = 0, flows: tuple[str, ...] = FLOW_ORDER) -> list[Sequence]:
    """Four samples of each flow, flow by flow."""
    return [sequence(flow, position, seed) for flow in flows for position in range(PER_FLOW)]


def _deal(batch: list[Sequence], ranks: int, micro_steps: int) -> list[list[list[Sequence]]]:
    """Deal sequences one by one, so that every rank and micro-step gets a share of every flow."""
    return [
        [batch[rank + ranks * micro :: ranks * micro_steps] for micro in range(micro_steps)]
        for rank in range(ranks)
    ]


def _cut(batch: list[Sequence], ranks: int, micro_steps: int) -> list[list[list[Sequence]]]:
    """Cut into contiguous stretches: of two ranks one holds features only, of four each one flow."""
    size = len(batch) // (ranks * micro_steps)
    slots = [batch[i * size : (i + 1) * size] for i in range(ranks * micro_steps)]
    return [slots[rank * micro_steps : (rank + 1) * micro_steps] for rank in range(ranks)]


def split(
    batch: list[Sequence], how: str, ranks: int, micro_steps: int
) -> list[list[list[Sequence]]]:
    """Which sequences each rank holds in each micro-step: ``[rank][micro_step]``.

    Args:
        batch: flow by flow.
        how: ``even``; ``asymmetric``, where ranks and micro-steps hold different flows; ``empty``, where
            the last rank (alone: its last micro-step) holds nothing.
        ranks: number of ranks.
        micro_steps: micro-steps per optimizer step.
    """
    if how == "even":
        return _deal(batch, ranks, micro_steps)
    if how == "asymmetric":
        return _cut(batch, ranks, micro_steps)
    assert how == "empty" and ranks * micro_steps > 1, how
    if ranks == 1:
        return [[*_deal(batch, 1, micro_steps - 1)[0], []]]
    return [*_deal(batch, ranks - 1, micro_steps), [[] for _ in range(micro_steps)]]
