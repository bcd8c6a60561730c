"""Understanding: continue sequences token by token, every sequence stopping on its own."""

from dataclasses import replace

import torch
from torch import Tensor

from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, Vocabulary, pack
from showo_kernels import Span


def _extended(sequence: Sequence, token: int) -> Sequence:
    """The sequence with one more causal token."""
    *before, last = sequence.spans
    grown = Span(last.length + 1, last.bidirectional, last.is_global)
    spans = [*before, last, Span(1)] if last.bidirectional or last.is_global else [*before, grown]
    positions = sequence.position_ids_L
    if positions is not None:
        positions = torch.cat([positions, positions[-1:] + 1])
    ids = torch.cat([sequence.ids_L, torch.tensor([token])])
    return replace(sequence, ids_L=ids, spans=spans, position_ids_L=positions)


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


@torch.no_grad()
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
        prompts: sequences that end where the answer begins.
        max_new_tokens: longest answer.
        top_k: 1 is greedy; None samples from all tokens.
        temperature: of the sampling.
        generator: random numbers on the model's device.
    """
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in prompts]
    growing = dict(enumerate(prompts))
    for _ in range(max_new_tokens):
        if not growing:
            break
        batch = pack(
            list(growing.values()),
            pad_id=vocabulary.pad,
            feature_width=model.feature_width,
            multiple_of=model.token_multiple,
        )
        last_rows = torch.tensor([len(s) for s in growing.values()]).cumsum(0) - 1
        logits_BV = model(batch.to(device), logit_rows=last_rows.to(device))
        tokens = _pick(logits_BV, top_k, temperature, generator).tolist()
        for index, token in zip(list(growing), tokens, strict=True):
            if token == vocabulary.eos:
                del growing[index]
                continue
            answers[index].append(token)
            growing[index] = _extended(growing[index], token)
    return answers
