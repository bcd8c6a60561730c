"""The samplers: each chooses, after a round of masked prediction, the places that are masked again.

``confidence`` is the published one (docs/specification.md, section 9). ``halton`` and ``random`` generate
places in an order that does not depend on the codes; ``one-by-one`` generates a single place per round in
random order: each code is sampled given all before it, without the error of places generated together.
``remdm`` and ``refine`` also mask generated places again, so that later rounds can correct them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count

import torch
from torch import Tensor

from showo_dist.sequences.masking import Schedule

# One generator for the batch (None: torch's global one), or one per image.
Generators = torch.Generator | None | list[torch.Generator]

_TINY = 1e-20  # keeps the logarithms of the published sampler finite
ONE_BY_ONE = "one-by-one"
_REFINING = 6  # one of so many rounds of ``refine`` corrects the finished image


@dataclass(frozen=True)
class Round:
    """A round in which every masked place got a code.

    Attributes:
        step, steps: its number from 0, and how many there are.
        schedule: share of codes that are still masked after a share of the rounds.
        unknown_BN: places that were masked before it.
        given_BN: places whose codes were never to be generated.
        chosen_BN: probability of each code in the round that generated it, fp32; of given places, anything.
        temperature: of the noise on the confidences.
        remask: share of places that ``remdm`` and ``refine`` mask again.
        generators: random numbers.
    """

    step: int
    steps: int
    schedule: Schedule
    unknown_BN: Tensor
    given_BN: Tensor
    chosen_BN: Tensor
    temperature: float
    remask: float
    generators: Generators

    def masked(self, steps: int) -> Tensor:
        """Return how many places (B, 1) stay masked if the schedule ends after ``steps`` rounds, fp32.

        At least 1 and at most the unknown places but one, as published.
        """
        share = self.schedule(torch.tensor((self.step + 1) / steps))
        wanted = (self.unknown_BN.shape[1] * share).floor().to(self.unknown_BN.device)
        return torch.minimum(self.all_but_one, wanted).clamp(min=1)

    @property
    def all_but_one(self) -> Tensor:
        """The number of unknown places less one, (B, 1), fp32."""
        return self.unknown_BN.sum(dim=1, keepdim=True).float() - 1

    def confidences(self) -> Tensor:
        """Return the published confidences (B, N), with noise; those of known places are the highest."""
        # Codes that are kept already get the highest confidence: they are never masked again.
        known = torch.finfo(self.chosen_BN.dtype).max
        chosen_BN = self.chosen_BN.where(self.unknown_BN, known)
        return log(chosen_BN) + self.temperature * gumbel(chosen_BN, self.generators)


@dataclass(frozen=True)
class Sampler:
    """A way to choose places.

    Attributes:
        masked: (round) -> the places to mask again, bool (B, N).
        rounds: (``steps`` of the options, places to generate in an image) -> number of rounds.
        by_confidence: whether confidences decide, whose noise has a temperature.
    """

    masked: Callable[[Round], Tensor]
    rounds: Callable[[int, int], int] = lambda steps, places: steps
    by_confidence: bool = False


def _confidence(round: Round) -> Tensor:
    return _below(round.confidences(), round.masked(round.steps))


def _halton(round: Round) -> Tensor:
    rank_N = halton_rank(round.unknown_BN.shape[1]).to(round.unknown_BN.device)
    score_BN = (-rank_N.float()).where(round.unknown_BN, math.inf)
    return _lowest(score_BN, round.masked(round.steps))


def _random(round: Round) -> Tensor:
    score_BN = gumbel(round.chosen_BN, round.generators).where(round.unknown_BN, math.inf)
    return _lowest(score_BN, round.masked(round.steps))


def _one_by_one(round: Round) -> Tensor:
    score_BN = gumbel(round.chosen_BN, round.generators).where(round.unknown_BN, math.inf)
    return _lowest(score_BN, round.all_but_one)


def _remdm(round: Round) -> Tensor:
    """As ReMDM (arXiv 2503.00307) with its confidence rule: the schedule is kept, but a share of the places
    that it leaves masked are generated ones with the smallest probability, and as many others are kept."""
    settled_BN = ~round.unknown_BN & ~round.given_BN
    masked_B1 = round.masked(round.steps)
    most_B1 = torch.minimum(masked_B1, settled_BN.sum(dim=1, keepdim=True).float())
    again_B1 = (round.remask * most_B1).floor()
    again_BN = _lowest(round.chosen_BN.where(settled_BN, math.inf), again_B1)
    return again_BN | _lowest(round.confidences(), masked_B1 - again_B1)


def _refine(round: Round) -> Tensor:
    """The published sampler in fewer rounds; in the last ones, the least likely codes are generated again."""
    steps = round.steps - round.steps // _REFINING
    if round.step + 1 < steps:
        return _below(round.confidences(), round.masked(steps))
    generated_B1 = (~round.given_BN).sum(dim=1, keepdim=True)
    score_BN = round.chosen_BN.masked_fill(round.given_BN, math.inf)
    return _lowest(score_BN, (round.remask * generated_B1).floor().clamp(min=1))


SAMPLERS: dict[str, Sampler] = {
    "confidence": Sampler(_confidence, by_confidence=True),
    "halton": Sampler(_halton),
    "random": Sampler(_random),
    ONE_BY_ONE: Sampler(_one_by_one, lambda steps, places: places),
    "remdm": Sampler(_remdm, by_confidence=True),
    "refine": Sampler(_refine, by_confidence=True),
}


@cache
def halton_rank(tokens: int) -> Tensor:
    """Return when the Halton sequence (bases 2 and 3) first reaches each place of a square grid, int64 (N,).

    Places that follow each other are far apart, so that they depend little on each other (arXiv 2503.17076).

    Raises:
        ValueError: the places are no square grid.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"sampler halton: {tokens} image codes are no square grid")
    ranks: dict[int, int] = {}
    for index in count(1):
        row, column = (int(_radical_inverse(index, base) * side) for base in (2, 3))
        ranks.setdefault(row * side + column, len(ranks))
        if len(ranks) == tokens:
            break
    return torch.tensor([ranks[place] for place in range(tokens)])


def _radical_inverse(index: int, base: int) -> float:
    """Mirror the digits of ``index`` at the point: 6 = 110 in base 2 becomes 0.011."""
    value, digit = 0.0, 1.0
    while index:
        digit /= base
        index, rest = divmod(index, base)
        value += digit * rest
    return value


def _below(score_BN: Tensor, count_B1: Tensor) -> Tensor:
    """Choose the places below the score of that rank, as published: equal scores are all kept."""
    return score_BN < score_BN.sort(dim=1).values.gather(1, count_B1.long())


def _lowest(score_BN: Tensor, count_B1: Tensor) -> Tensor:
    """Choose exactly so many places of each image, those with the lowest scores, but none at infinity."""
    rank_BN = score_BN.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank_BN < count_B1) & (score_BN < math.inf)


def nucleus(probabilities_BNK: Tensor, top_p: float) -> Tensor:
    """Keep the most likely codes that together have at least the probability ``top_p``; others get 0."""
    sorted_BNK, order_BNK = probabilities_BNK.sort(dim=-1, descending=True)
    before_BNK = sorted_BNK.cumsum(dim=-1) - sorted_BNK
    kept_BNK = sorted_BNK.masked_fill(before_BNK >= top_p, 0.0)
    return torch.zeros_like(kept_BNK).scatter(-1, order_BNK, kept_BNK)


def log(value: Tensor) -> Tensor:
    """Return the logarithm, finite also of 0."""
    return value.clamp(min=_TINY).log()


def draw(probabilities_BNK: Tensor, generators: Generators) -> Tensor:
    """Sample one code per place, int64 (B, N)."""
    if not isinstance(generators, list):
        flat = probabilities_BNK.flatten(0, 1)
        codes = torch.multinomial(flat, 1, generator=generators)
        return codes.view(probabilities_BNK.shape[:2])
    rows = zip(probabilities_BNK, generators, strict=True)
    return torch.stack([torch.multinomial(p_NK, 1, generator=g)[:, 0] for p_NK, g in rows])


def gumbel(like_BN: Tensor, generators: Generators) -> Tensor:
    """Sample Gumbel noise in the shape of ``like_BN``."""
    noise_BN = torch.zeros_like(like_BN)
    if isinstance(generators, list):
        for row_N, generator in zip(noise_BN, generators, strict=True):
            row_N.uniform_(0, 1, generator=generator)
    else:
        noise_BN.uniform_(0, 1, generator=generators)
    return -log(-log(noise_BN))
