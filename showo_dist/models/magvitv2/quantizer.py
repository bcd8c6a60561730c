"""Look-up-free quantisation (MAGVIT-v2, arXiv 2310.05737): the sign of each channel is one bit of the code.

Shapes here: C bits, T positions of the batch (B·h·w)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COMMITMENT_BETA = 0.25  # weight of the published second commitment term


@dataclass
class QuantizerLosses:
    """The loss terms besides reconstruction, as unweighted scalars.

    Entropies are in nats per bit of the code, hence in [0, ln 2] for every codebook size.
    """

    commitment: Tensor
    """Squared distance of the latents from ±1, plus the published β term."""

    sample_entropy: Tensor
    """Mean entropy of the bits of one position. Minimised: each position should choose its code surely."""

    codebook_entropy: Tensor
    """Entropy of each bit over the batch, bit by bit. Maximised: both values of a bit should occur."""

    joint_entropy: Tensor
    """Entropy of whole codes over the batch; at most ``codebook_entropy``, which it can replace."""


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
        """Codes (B, h, w) to their latents (B, bits, h, w) of ±1."""
        return self.embedding[codes_Bhw].permute(0, 3, 1, 2)

    def forward(
        self, latents_BChw: Tensor, pool: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, QuantizerLosses]:
        """Quantise with a straight-through gradient.

        Args:
            latents_BChw: the encoder's output; converted to float32.
            pool: averages a mean of this rank over all ranks, so that codebook and joint entropy are those of
                the global batch; None when this process holds the whole batch.

        Returns:
            latents (B, bits, h, w) of ±1, codes (B, h·w) int64, and the loss terms.
        """
        z_BChw = latents_BChw.float()
        # Straight-through: forward uses the signs, backward the gradient of z.
        signs_BChw = torch.where(z_BChw > 0, 1.0, -1.0)
        quantized_BChw = z_BChw + (signs_BChw - z_BChw).detach()
        # The entropies are sums of many small numbers: they stay in float32.
        with torch.autocast(z_BChw.device.type, enabled=False):
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
    # Probability that a bit is set: softmax over the negative squared distances to +1 and -1.
    prob_TC = torch.sigmoid(4 * z_BChw).movedim(1, -1).flatten(0, -2)
    return QuantizerLosses(
        commitment=commitment,
        sample_entropy=binary_entropy(prob_TC).mean(),
        codebook_entropy=binary_entropy(pool(prob_TC.mean(0))).mean(),
        joint_entropy=entropy(pool(mean_code_probability(prob_TC))) / prob_TC.shape[1],
    )


def entropy(probability: Tensor) -> Tensor:
    """-Σ p ln p in nats; 0 ln 0 is 0, with a finite gradient."""
    return -torch.xlogy(probability, probability.clamp_min(1e-12)).sum()


def binary_entropy(probability: Tensor) -> Tensor:
    """Entropy in nats of a binary variable, elementwise."""
    rest = 1 - probability
    return -torch.xlogy(probability, probability.clamp_min(1e-12)) - torch.xlogy(
        rest, rest.clamp_min(1e-12)
    )


def mean_code_probability(prob_TC: Tensor) -> Tensor:
    """Average the distributions of T positions over all 2**C codes: (2**C,), from the bits' probabilities.

    The bits of one position are independent, so the distribution over its codes is the outer product of the
    distributions over the first a and the last b bits, a + b = C. The mean over positions is therefore one
    matrix product (2**a × T)·(T × 2**b): exact, without a (T × 2**C) tensor.
    """
    # Two halves of the bits keep both factors at 2**(bits/2) columns.
    half = prob_TC.shape[1] // 2
    high_TI, low_TJ = _product(prob_TC[:, :half]), _product(prob_TC[:, half:])
    return (high_TI.T @ low_TJ).flatten() / len(prob_TC)


def _product(prob_TC: Tensor) -> Tensor:
    """Distribution (T, 2**C) over the codes of C independent bits; the first bit is the most significant."""
    out_TI = prob_TC.new_ones(len(prob_TC), 1)
    for p_T in prob_TC.unbind(1):
        p_T1 = p_T[:, None]
        out_TI = torch.stack([out_TI * (1 - p_T1), out_TI * p_T1], dim=-1).flatten(1)
    return out_TI
