"""Generation with the cache gives the logits and tokens of computing whole sequences."""

from typing import Any

import pytest
import torch
from PIL import Image

from showo_dist.generation import Pipeline, user
from showo_dist.generation.answer import answer
from showo_dist.generation.cache import PrefixCache
from showo_dist.generation.sampling import ImageSampler, SamplingOptions
from showo_dist.sequences import Sequence
from showo_dist.sequences.builders import t2i_prompt
from showo_kernels import CachedPlan
from tests.generation import oracles

TEXTS = ["a red circle", "", "two blue squares left of a ring", "a ring"]


@pytest.fixture(params=["codes", "clip"])
def any_pipeline(request: pytest.FixtureRequest) -> Pipeline:
    name = {"codes": "pipeline", "clip": "clip_pipeline"}[request.param]
    return request.getfixturevalue(name)


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kept", [[5, 5, 5], [2, 7, 7, 1], [3]])
@pytest.mark.parametrize(("rows", "steps"), [(1, 4), (6, 1)])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_cached_plan_is_softmax_attention(
    kept: list[int], rows: int, steps: int, key_heads: int
) -> None:
    """Against softmax attention of one sequence at a time; the empty columns hold random numbers."""
    torch.manual_seed(len(kept) + rows)
    longest, batch, width = max(kept), len(kept), 8
    plan = CachedPlan.build(kept, rows, longest + rows * steps)
    assert len(plan) == batch * rows
    for step in range(1, steps + 1):
        columns = longest + rows * step
        query = torch.randn(1, 4, batch * rows, width)
        keys, values = torch.randn(2, batch, key_heads, columns, width)
        out = plan.attend(query, keys, values, 0.3)
        for index, own in enumerate(kept):
            q = query[0, :, index * rows : (index + 1) * rows]
            k, v = (
                x[index, :, longest - own :].repeat_interleave(4 // key_heads, dim=0)
                for x in (keys, values)
            )
            wanted = (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v
            _close(out[0, :, index * rows : (index + 1) * rows], wanted)


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_generation_rounds(pipeline: Pipeline, guidance: float) -> None:
    options = SamplingOptions(steps=4, guidance=guidance)
    prompts = [pipeline.text.encode(text) for text in TEXTS]
    vocabulary, model = pipeline.vocabulary, pipeline.model
    sampler = ImageSampler(model, vocabulary, prompts, budget=24, options=options, tokens=16)
    blank_N = torch.full((16,), vocabulary.codebook)
    halves = [(prompts, 24)] + ([([[]] * len(prompts), 2)] if guidance else [])
    sequences = [t2i_prompt(p, blank_N, room, vocabulary) for part, room in halves for p in part]
    generator = torch.Generator().manual_seed(0)
    for _ in sampler.rounds(generator):
        codes_BN = sampler.codes_BN.repeat(len(halves), 1)
        _close(
            sampler.image_logits(),
            oracles.image_logits(model, vocabulary, sequences, codes_BN),
        )
    codes = slice(vocabulary.image_offset, vocabulary.mask)
    _close(sampler.image_logits(codes), sampler.image_logits()[..., codes])


def _conversations(images: list[Image.Image]) -> list[list[Any]]:
    return [
        [user(images[0], "what is shown?")],
        [user("which of", images[1], "and", images[2], "is red?")],
        [user("hello")],
        [user(images[3], images[4], "are there any differences at all between these two?")],
    ]


def test_continuations(any_pipeline: Pipeline, images: list[Image.Image]) -> None:
    """Different lengths in one batch; each answer stops at its own end."""
    model, vocabulary = any_pipeline.model, any_pipeline.vocabulary
    prompts = any_pipeline.question_sequences(_conversations(images))
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    wanted = oracles.greedy(model, vocabulary, prompts, 12)
    assert answer(model, vocabulary, prompts, max_new_tokens=12) == wanted
    assert len({tuple(tokens) for tokens in wanted}) > 1


def test_an_answer_that_ends_does_not_change_the_rest(
    pipeline: Pipeline, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second token of the first answer becomes the end mark: it stops, the rest continue."""
    model, vocabulary = pipeline.model, pipeline.vocabulary
    prompts = pipeline.question_sequences(_conversations(images))
    free = answer(model, vocabulary, prompts, max_new_tokens=10)
    end = free[0][1]

    class Ended(type(vocabulary)):  # type: ignore[misc]
        eos = end

    ended = Ended(vocabulary.text, vocabulary.codebook, vocabulary.bos)
    wanted = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in free]
    assert answer(model, ended, prompts, max_new_tokens=10) == wanted
    assert len(wanted[0]) <= 1 and max(map(len, wanted)) == 10


def test_logits_of_every_step(any_pipeline: Pipeline, images: list[Image.Image]) -> None:
    model, vocabulary = any_pipeline.model, any_pipeline.vocabulary
    sequences = any_pipeline.question_sequences(_conversations(images))
    with torch.no_grad():
        cache = PrefixCache(model, vocabulary, sequences, room=3, rows=1)
        _close(cache.last_logits_BV, oracles.last_logits(model, vocabulary, sequences))
        for step, keep in enumerate([[0, 1, 2, 3], [0, 2, 3], [3]]):
            if len(keep) < len(sequences):
                places = [0, 2, 3] if step == 1 else [2]
                cache.keep(places)
                sequences = [sequences[place] for place in places]
            tokens_B = torch.arange(len(sequences)) + 7 * step + 1
            sequences = [oracles.grown(s, int(t)) for s, t in zip(sequences, tokens_B, strict=True)]
            _close(
                cache.extend(tokens_B[:, None]), oracles.last_logits(model, vocabulary, sequences)
            )


def test_reconstruction_rounds(any_pipeline: Pipeline, images: list[Image.Image]) -> None:
    """The generated image after a condition: its span holds soi and eoi for codes, not for CLIP features."""
    sequences: list[Sequence] = any_pipeline.image_sequences(
        [[images[0], "describe it"], [images[1], images[2], "and now?"]]
    )
    model, vocabulary = any_pipeline.model, any_pipeline.vocabulary
    options = SamplingOptions(steps=3, guidance=0.0)
    sampler = ImageSampler(model, vocabulary, sequences, budget=24, options=options, tokens=16)
    for _ in sampler.rounds(torch.Generator().manual_seed(0)):
        wanted = oracles.image_logits(model, vocabulary, sequences, sampler.codes_BN)
        _close(sampler.image_logits(), wanted)
