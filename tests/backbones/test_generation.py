"""Cached generation equals computing whole sequences, for every family: answers and images."""

import pytest
import torch
from torch import Tensor

from showo_dist.generation.cache import PrefixCache
from showo_dist.generation.sampling import ImageSampler, SamplingOptions
from showo_dist.sequences import Sequence
from showo_dist.sequences.builders import t2i_prompt
from showo_kernels import Span
from tests.families import FAMILIES
from tests.generation import oracles
from tests.single_pass.batches import VOCABULARY, build_tiny, sequence

families = pytest.mark.parametrize("family", FAMILIES)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def prefix(tokens: int) -> Sequence:
    """Causal text of so many tokens."""
    ids_L = torch.arange(tokens) % (VOCABULARY.text - 1) + 1
    return Sequence(ids_L=ids_L, spans=[Span(tokens)], flow="lm")


@families
def test_every_word_of_an_answer(family: str) -> None:
    """Prefixes of different lengths, one with CLIP features; longer than any window."""
    model = build_tiny(family=family).eval()
    sequences = [sequence("mmu", 0), prefix(3), prefix(14)]
    with torch.no_grad():
        cache = PrefixCache(model, VOCABULARY, sequences, room=3, rows=1)
        close(cache.last_logits_BV, oracles.last_logits(model, VOCABULARY, sequences))
        for step in range(3):
            tokens_B = torch.arange(3) + 7 * step + 1
            sequences = [oracles.grown(s, int(t)) for s, t in zip(sequences, tokens_B, strict=True)]
            close(
                cache.extend(tokens_B[:, None]), oracles.last_logits(model, VOCABULARY, sequences)
            )


@families
def test_every_round_of_an_image(family: str) -> None:
    model = build_tiny(family=family).eval()
    prompts = [[3, 9, 4], [7], [5, 1, 2, 8, 6]]
    options = SamplingOptions(steps=3, guidance=0.0)
    sampler = ImageSampler(model, VOCABULARY, prompts, budget=16, options=options, tokens=9)
    blank_N = torch.full((9,), VOCABULARY.codebook)
    sequences = [t2i_prompt(prompt, blank_N, 16, VOCABULARY) for prompt in prompts]
    for _ in sampler.rounds(torch.Generator().manual_seed(0)):
        wanted = oracles.image_logits(model, VOCABULARY, sequences, sampler.codes_BN)
        close(sampler.image_logits(), wanted)
