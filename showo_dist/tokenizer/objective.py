"""What the tokenizer is trained for."""

from torch import Tensor

from showo_dist.models.magvitv2 import TokenizerOutput
from showo_dist.tokenizer.config import LossConfig


def objective(
    output: TokenizerOutput, pixels_B3HW: Tensor, weights: LossConfig
) -> dict[str, Tensor]:
    """The weighted sum ``loss`` and its terms, unweighted scalars.

    Reconstruction is pixel-wise (no perceptual network, so nothing has to be downloaded).
    """
    error_B3HW = output.reconstruction.float() - pixels_B3HW
    terms = {"l1": error_B3HW.abs().mean(), "l2": error_B3HW.square().mean()}
    losses = output.losses
    terms["commitment"] = losses.commitment
    terms["sample_entropy"] = losses.sample_entropy
    terms["bit_entropy"] = losses.codebook_entropy
    terms["joint_entropy"] = losses.joint_entropy
    even_use = losses.joint_entropy if weights.codebook == "joint" else losses.codebook_entropy
    terms["loss"] = (
        weights.l1 * terms["l1"]
        + weights.l2 * terms["l2"]
        + weights.commitment * losses.commitment
        + weights.sample_entropy * losses.sample_entropy
        - weights.codebook_entropy * even_use
    )
    return terms
