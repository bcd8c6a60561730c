"""The loss, learning-rate schedule and initial weights of tokenizer training."""

import math

from torch import Tensor, nn

from showo_dist.models.magvitv2 import MAGVITv2, TokenizerOutput
from showo_dist.tokenizer.config import AdamWConfig, LossConfig


def objective(
    output: TokenizerOutput, pixels_B3HW: Tensor, weights: LossConfig
) -> dict[str, Tensor]:
    """Compute the loss terms as unweighted scalars, and their weighted sum ``loss``.

    Reconstruction is pixel-wise: a perceptual loss would need another trained network.
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


def learning_rate(config: AdamWConfig, step: int, total: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``total``."""
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = 0.5 + 0.5 * math.cos(math.pi * step / total)
    return (
        config.learning_rate
        * warm_up
        * (config.final_fraction + (1 - config.final_fraction) * left)
    )


# Last layer of a residual branch; it starts at zero, so that every block starts as the identity.
_BRANCH_ENDS = ("conv2", "proj_out")


def initialise(model: MAGVITv2) -> None:
    """Initialise weights from torch's global generator: He's variance, and residual branches at 0.

    On the mini world this halves the steps that torch's default initialisation needs for the same PSNR.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        assert module.bias is not None, name
        nn.init.zeros_(module.bias)
        if name.endswith(_BRANCH_ENDS):
            nn.init.zeros_(module.weight)
        else:
            behind_silu = name.endswith("conv1")
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if behind_silu else "linear")
