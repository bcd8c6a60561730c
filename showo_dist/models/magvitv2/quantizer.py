"""Look-up-free quantisation (MAGVIT-v2, arXiv 2310.05737): the sign of each channel is one bit."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COMMITMENT_BETA = 0.25  # weight of the published second commitment term


@dataclass
class QuantizerLosses:
    """The terms a tokenizer is trained with besides reconstruction, unweighted scalars.

    Entropies are in nats per bit of the code, so they lie in [0, ln 2] for every codebook size.
    """

    commitment: Tensor
    """Squared distance of the latents from ±1, plus the published β term."""

    sample_entropy: Tensor
    """How undecided each place is; to be made small."""

    codebook_entropy: Tensor
    """How evenly the bits are used over the batch, each bit for itself; to be made large."""

    joint_entropy: Tensor
    """How evenly whole codes are used over the batch; at most ``codebook_entropy``; large, too."""


class LookupFreeQuantizer(nn.Module):
    """code = Σ 2^(bits-1-c) · [z_c > 0] (docs/specification.md, section 7)."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        power_vals = 2 ** torch.arange(bits - 1, -1, -1)
        set_bits = torch.arange(2**bits).unsqueeze(1).bitwise_and(power_vals) > 0
        self.register_buffer("embedding", set_bits.float() * 2 - 1)
        self.register_buffer("power_vals", power_vals)

    def codes(self, latents_BChw: Tensor) -> Tensor:
        """Latents (B, bits, h, w) to codes (B, h·w), int64, row by row."""
        bits_BNC = (latents_BChw > 0).flatten(2).transpose(1, 2)
        return (bits_BNC * self.power_vals).sum(-1)

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Codes (B, h, w) to the ±1 latents (B, bits, h, w) they stand for."""
        return self.embedding[codes_Bhw].permute(0, 3, 1, 2)

    def forward(
        self, latents_BChw: Tensor, pool: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, QuantizerLosses]:
        """Quantise with a straight-through gradient.

        Args:
            latents_BChw: the encoder's output; computed on in float32.
            pool: averages a batch mean over all ranks, so that the entropies of code use are those
                of the global batch; ``None`` when this process holds the whole batch.

        Returns:
            ±1 latents (B, bits, h, w), codes (B, h·w) int64, and the loss terms.
        """
        z_BChw = latents_BChw.float()
        signs_BChw = torch.where(z_BChw > 0, 1.0, -1.0)
        quantized_BChw = z_BChw + (signs_BChw - z_BChw).detach()
        losses = _losses(z_BChw, quantized_BChw, pool or (lambda mean: mean))
        return quantized_BChw, self.codes(z_BChw), losses


def _losses(
    z_BChw: Tensor, quantized_BChw: Tensor, pool: Callable[[Tensor], Tensor]
) -> QuantizerLosses:
    # The β term has the published value; through the straight-through path its gradient pushes
    # the latents away from ±1, which weakens the first term to 1 - β.
    commitment = (quantized_BChw.detach() - z_BChw).square().mean() + COMMITMENT_BETA * (
        quantized_BChw - z_BChw.detach()
    ).square().mean()
    # softmax over the negative squared distances to +1 and -1
    prob_TC = torch.sigmoid(4 * z_BChw).movedim(1, -1).flatten(0, -2)
    return QuantizerLosses(
        commitment=commitment,
        sample_entropy=binary_entropy(prob_TC).mean(),
        codebook_entropy=binary_entropy(pool(prob_TC.mean(0))).mean(),
        joint_entropy=entropy(pool(mean_code_probability(prob_TC))) / prob_TC.shape[1],
    )


def entropy(probability: Tensor) -> Tensor:
    """-Σ p ln p, with 0 ln 0 = 0 and a finite gradient there."""
    return -torch.xlogy(probability, probability.clamp_min(1e-12)).sum()


def binary_entropy(probability: Tensor) -> Tensor:
    """Entropy in nats of a coin, elementwise."""
    rest = 1 - probability
    return -torch.xlogy(probability, probability.clamp_min(1e-12)) - torch.xlogy(
        rest, rest.clamp_min(1e-12)
    )


def mean_code_probability(prob_TC: Tensor) -> Tensor:
    """Mean over T places of the distribution over all 2**C codes, from the bits' probabilities.

    The bits of one place are independent, so each half of them has a distribution that is an outer
    product, and the mean over places of the whole is one (2**a × T)·(T × 2**b) matrix product,
    a + b = C: exact, without ever holding T × 2**C numbers.
    """
    half = prob_TC.shape[1] // 2
    high_TI, low_TJ = _product(prob_TC[:, :half]), _product(prob_TC[:, half:])
    return (high_TI.T @ low_TJ).flatten() / len(prob_TC)


def _product(prob_TC: Tensor) -> Tensor:
    """Distribution (T, 2**C) over the codes of independent bits, the first bit the highest."""
    out_TI = prob_TC.new_ones(len(prob_TC), 1)
    for p_T in prob_TC.unbind(1):
        p_T1 = p_T[:, None]
        out_TI = torch.stack([out_TI * (1 - p_T1), out_TI * p_T1], dim=-1).flatten(1)
    return out_TI
