"""The image at the end of a sequence: everything before it is read once, it itself anew every round.

Text to image: guess all masked codes, hide the least sure ones again (docs/specification.md, section 9)."""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from showo_dist.generation.cache import PrefixCache
from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, Vocabulary
from showo_dist.sequences.builders import t2i_prompt
from showo_dist.sequences.masking import Schedule, mask_schedule
from showo_kernels import Span


def split_canvas(sequence: Sequence, tokens: int) -> tuple[Sequence, Tensor, int]:
    """Cut a sequence before the bidirectional span that holds its last image.

    No row before that span sees it, so the keys and values of those rows are the same in every round. What
    stands behind it (the causal eoi of CLIP reconstruction) is not seen by the image, and left out.

    Args:
        sequence: as the builders of t2i and reconstruction make it.
        tokens: image tokens N of the image.

    Returns:
        The prefix, the ids of the span, and the row of the first image token in it.
    """
    spans = list(sequence.spans)
    while not spans[-1].bidirectional:
        spans.pop()
    *before, canvas = spans
    start = sum(span.length for span in before)
    ids_Q = sequence.ids_L[start : start + canvas.length]
    frame = canvas.length - tokens  # soi and eoi, where they belong to the span
    assert frame in (0, 2) and not canvas.is_global and start > 0
    return _beginning(sequence, before, start), ids_Q, frame // 2


def _beginning(sequence: Sequence, spans: list[Span], length: int) -> Sequence:
    """The first ``length`` tokens, which ``spans`` cover; none of them is supervised."""
    positions = sequence.position_ids_L
    if positions is not None:
        positions = positions[:length]
    return replace(
        sequence,
        ids_L=sequence.ids_L[:length],
        spans=spans,
        position_ids_L=positions,
        label_rows_P=sequence.label_rows_P[:0],
        targets_P=sequence.targets_P[:0],
        weights_P=None,
    )


class Canvas:
    """The images of a batch, of one size, behind prefixes of any length.

    Args:
        model: in eval mode.
        vocabulary: the model's ids.
        sequences: X sequences that end with their image; halves of guidance are sequences like any other.
        tokens: image tokens N of an image.
    """

    def __init__(
        self, model: ShowO, vocabulary: Vocabulary, sequences: list[Sequence], tokens: int
    ) -> None:
        parts = [split_canvas(sequence, tokens) for sequence in sequences]
        device = next(model.parameters()).device
        self._offset, self._first = vocabulary.image_offset, parts[0][2]
        self.ids_XQ = torch.stack([ids_Q for _, ids_Q, _ in parts]).to(device)
        count, rows = self.ids_XQ.shape
        self._cache = PrefixCache(
            model, vocabulary, [prefix for prefix, _, _ in parts], room=rows, rows=rows
        )
        places_N = torch.arange(tokens, device=device) + self._first
        self._logit_rows = (torch.arange(count, device=device)[:, None] * rows + places_N).flatten()
        self._tokens = tokens

    def logits(self, codes_BN: Tensor, ids: slice = slice(None)) -> Tensor:
        """Logits (X, N, ids) of images that hold ``codes_BN``; X is a multiple of B."""
        image = slice(self._first, self._first + self._tokens)
        copies = len(self.ids_XQ) // len(codes_BN)
        self.ids_XQ[:, image] = (codes_BN + self._offset).repeat(copies, 1)
        logits = self._cache.extend(self.ids_XQ, self._logit_rows, ids)
        self._cache.forget()
        return logits.unflatten(0, (len(self.ids_XQ), self._tokens))


_TINY = 1e-20  # keeps the logarithms of the published sampler finite


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    Attributes:
        steps: rounds (released: 50 at 512 px, 16 at 256 px).
        guidance: w of ``(1+w)·cond - w·uncond``; 0 runs no unconditional half.
        temperature: of the noise on the confidences; it shrinks every round, cumulatively as published.
        schedule: share of codes still masked after a round.
    """

    steps: int = 16
    guidance: float = 1.75
    temperature: float = 1.0
    schedule: Schedule = field(default_factory=lambda: mask_schedule("cosine"))


def _log(value: Tensor) -> Tensor:
    return value.clamp(min=_TINY).log()


# One generator for the batch (None: torch's global one), or one per image.
Generators = torch.Generator | None | list[torch.Generator]


def _draw(probabilities_BNV: Tensor, generators: Generators) -> Tensor:
    """One code per place (B, N)."""
    if not isinstance(generators, list):
        flat = probabilities_BNV.flatten(0, 1)
        drawn = torch.multinomial(flat, 1, generator=generators)
        return drawn.view(probabilities_BNV.shape[:2])
    rows = zip(probabilities_BNV, generators, strict=True)
    return torch.stack([torch.multinomial(p_NV, 1, generator=g)[:, 0] for p_NV, g in rows])


def _gumbel(like_BN: Tensor, generators: Generators) -> Tensor:
    noise_BN = torch.zeros_like(like_BN)
    if isinstance(generators, list):
        for row_N, generator in zip(noise_BN, generators, strict=True):
            row_N.uniform_(0, 1, generator=generator)
    else:
        noise_BN.uniform_(0, 1, generator=generators)
    return -_log(-_log(noise_BN))


def _still_masked(confidence_BN: Tensor, unknown_BN: Tensor, share: Tensor) -> Tensor:
    """The places to hide again: those below the k-th smallest confidence of their row."""
    wanted = (confidence_BN.shape[1] * share).floor().to(confidence_BN.device)
    most = unknown_BN.sum(dim=1, keepdim=True) - 1
    count_B1 = torch.minimum(most.float(), wanted).clamp(min=1).long()
    return confidence_BN < confidence_BN.sort(dim=1).values.gather(1, count_B1)


class ImageSampler:
    """Generates the masked codes of a batch of images.

    Args:
        model: in eval mode; its device and dtype are used.
        vocabulary: the model's ids.
        prompts: text ids of each image, or whole sequences that end with their image (reconstruction,
            images among the text).
        budget: text budget M of prompts that are text.
        options: see :class:`SamplingOptions`.
        tokens: N, when ``codes_BN`` is None.
        codes_BN: int64 starting codes; ``vocabulary.codebook`` marks a place to generate. None generates all.
    """

    def __init__(
        self,
        model: ShowO,
        vocabulary: Vocabulary,
        prompts: Seq[list[int] | Sequence],
        *,
        budget: int,
        options: SamplingOptions,
        tokens: int = 0,
        codes_BN: Tensor | None = None,
    ) -> None:
        self.model, self.vocabulary, self.options = model, vocabulary, options
        if codes_BN is None:
            codes_BN = torch.full((len(prompts), tokens), vocabulary.codebook)
        blank_N = torch.full(codes_BN.shape[1:], vocabulary.codebook)
        self._sequences = [
            p if isinstance(p, Sequence) else t2i_prompt(p, blank_N, budget, vocabulary)
            for p in prompts
        ]
        if options.guidance > 0:
            self._sequences += [t2i_prompt([], blank_N, 2, vocabulary)] * len(prompts)
        self.codes_BN = codes_BN.to(next(model.parameters()).device)
        self._given_BN = self.codes_BN != vocabulary.codebook

    @cached_property
    def canvas(self) -> Canvas:
        """The prompts as they were read: once, when the first logits are asked for."""
        return Canvas(self.model, self.vocabulary, self._sequences, self.codes_BN.shape[1])

    def image_logits(self, ids: slice = slice(None)) -> Tensor:
        """Logits at the image places, (B or 2B, N, ids): conditional rows, then unconditional ones.

        Args:
            ids: the part of the vocabulary that is wanted.
        """
        return self.canvas.logits(self.codes_BN, ids)

    def _code_logits(self) -> Tensor:
        """Guided logits over the image codes only, fp32 (B, N, codebook)."""
        codes = slice(self.vocabulary.image_offset, self.vocabulary.mask)
        logits = self.image_logits(codes).float()
        if self.options.guidance <= 0:
            return logits
        conditional, unconditional = logits.chunk(2)
        return (1 + self.options.guidance) * conditional - self.options.guidance * unconditional

    def rounds(self, generators: Generators = None) -> Iterator[Tensor]:
        """Yield the guessed codes (B, N) after every round; the last are the image."""
        temperature = self.options.temperature
        for step in range(self.options.steps):
            done = (step + 1) / self.options.steps
            temperature *= 1.0 - done
            yield self._round(done, temperature, generators)

    def _round(self, done: float, temperature: float, generators: Generators) -> Tensor:
        probabilities = self._code_logits().softmax(dim=-1)
        drawn_BN = _draw(probabilities, generators)
        unknown_BN = self.codes_BN == self.vocabulary.codebook
        guess_BN = torch.where(unknown_BN, drawn_BN, self.codes_BN)
        chosen_BN = probabilities.gather(-1, guess_BN[..., None]).squeeze(-1)
        chosen_BN = chosen_BN.where(unknown_BN, torch.finfo(chosen_BN.dtype).max)
        confidence_BN = _log(chosen_BN) + temperature * _gumbel(chosen_BN, generators)
        share = self.options.schedule(torch.tensor(done))
        hidden_BN = _still_masked(confidence_BN, unknown_BN, share) & ~self._given_BN
        self.codes_BN = guess_BN.masked_fill(hidden_BN, self.vocabulary.codebook)
        return guess_BN


def sample_codes(sampler: ImageSampler, generators: Generators = None) -> Tensor:
    """The final codes, int64 (B, N).

    Args:
        sampler: what to generate.
        generators: random numbers on the model's device. With one per image an image does not depend on
            those generated beside it; one for all, or torch's own when None, is the published order of draws.
    """
    codes = sampler.codes_BN
    for guess in sampler.rounds(generators):
        codes = guess
    return codes
