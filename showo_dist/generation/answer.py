"""Sampling of text: continue a batch of sequences token by token until each one has ended."""

import torch
from torch import Tensor

from showo_dist.generation.cache import PrefixCache
from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, Vocabulary


def answer(
    model: ShowO,
    vocabulary: Vocabulary,
    prompts: list[Sequence],
    *,
    max_new_tokens: int = 100,
    top_k: int | None = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    end: int | None = None,
) -> list[list[int]]:
    """Return the new token ids of each prompt, without the end mark.

    Args:
        model: in eval mode.
        vocabulary: the model's ids.
        prompts: sequences that end where the answer begins, of any lengths.
        max_new_tokens: longest answer.
        top_k: sample among the k most likely tokens; 1 is greedy, None samples among all.
        temperature: divides the logits.
        generator: random numbers on the model's device.
        end: id of the token that ends an answer; None: the vocabulary's eos.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    cache = read(model, vocabulary, prompts, max_new_tokens)
    end = vocabulary.eos if end is None else end
    return write(cache, end, max_new_tokens, top_k, temperature, generator)


def read(
    model: ShowO, vocabulary: Vocabulary, prompts: list[Sequence], max_new_tokens: int
) -> PrefixCache:
    """Read the prompts in one pass, with room for answers of ``max_new_tokens`` (1 or more) tokens."""
    return PrefixCache(model, vocabulary, prompts, room=max_new_tokens - 1, rows=1)


@torch.no_grad()
def write(
    cache: PrefixCache,
    end: int,
    max_new_tokens: int,
    top_k: int | None = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Continue the sequences of a cache; each step computes one row per unfinished sequence.

    Args:
        cache: from :func:`read`; it cannot be used again.
        end: id of the token that ends an answer.
        max_new_tokens, top_k, temperature, generator: see :func:`answer`.
    """
    answers: list[list[int]] = [[] for _ in range(len(cache))]
    logits_BV = cache.last_logits_BV
    unfinished = list(range(len(answers)))  # the answer that each row of the cache belongs to
    for step in range(1, max_new_tokens + 1):
        tokens_B = _next_tokens(logits_BV, top_k, temperature, generator)
        tokens = tokens_B.tolist()
        kept = [row for row, token in enumerate(tokens) if token != end]
        for row in kept:
            answers[unfinished[row]].append(tokens[row])
        if not kept or step == max_new_tokens:
            break
        if len(kept) < len(unfinished):
            cache.keep(kept)
            unfinished = [unfinished[row] for row in kept]
            tokens_B = tokens_B[kept]
        logits_BV = cache.extend(tokens_B[:, None])
    return answers


def _next_tokens(
    logits_BV: Tensor, top_k: int | None, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Sample the next token of each sequence, int64 (B,)."""
    if top_k == 1:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.float() / temperature
    if top_k is not None:
        least = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, float("-inf"))
    return torch.multinomial(logits_BV.softmax(dim=-1), 1, generator=generator).squeeze(1)
