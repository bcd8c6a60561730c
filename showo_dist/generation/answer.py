"""Understanding: continue sequences token by token, every sequence stopping on its own."""

import torch
from torch import Tensor

from showo_dist.generation.cache import PrefixCache
from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, Vocabulary


def _pick(
    logits_BV: Tensor, top_k: int | None, temperature: float, generator: torch.Generator | None
) -> Tensor:
    if top_k == 1:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.float() / temperature
    if top_k is not None:
        least = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, float("-inf"))
    return torch.multinomial(logits_BV.softmax(dim=-1), 1, generator=generator).squeeze(1)


def read(
    model: ShowO, vocabulary: Vocabulary, prompts: list[Sequence], max_new_tokens: int
) -> PrefixCache:
    """Read the prompts once, in one pass, with room for answers of ``max_new_tokens`` (1 or more) tokens."""
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
    """Continue what was read: each step computes one row per unfinished sequence.

    Args:
        cache: from :func:`read`, used up by this.
        end: id of the mark that ends an answer.
        max_new_tokens, top_k, temperature, generator: see :func:`answer`.
    """
    answers: list[list[int]] = [[] for _ in range(len(cache))]
    logits_BV = cache.last_logits_BV
    growing = list(range(len(answers)))
    for step in range(1, max_new_tokens + 1):
        tokens_B = _pick(logits_BV, top_k, temperature, generator)
        tokens = tokens_B.tolist()
        going = [row for row, token in enumerate(tokens) if token != end]
        for row in going:
            answers[growing[row]].append(tokens[row])
        if not going or step == max_new_tokens:
            break
        if len(going) < len(growing):
            cache.keep(going)
            growing = [growing[row] for row in going]
            tokens_B = tokens_B[going]
        logits_BV = cache.extend(tokens_B[:, None])
    return answers


def answer(
    model: ShowO,
    vocabulary: Vocabulary,
    prompts: list[Sequence],
    *,
    max_new_tokens: int = 100,
    top_k: int | None = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """New token ids of each prompt, end mark left out.

    Args:
        model: in eval mode.
        vocabulary: the model's ids.
        prompts: sequences that end where the answer begins, of any lengths.
        max_new_tokens: longest answer.
        top_k: 1 is greedy; None samples from all tokens.
        temperature: of the sampling.
        generator: random numbers on the model's device.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    cache = read(model, vocabulary, prompts, max_new_tokens)
    return write(cache, vocabulary.eos, max_new_tokens, top_k, temperature, generator)
