"""Initial weights for training a tokenizer from nothing in few steps."""

from torch import nn

from showo_dist.models.magvitv2 import MAGVITv2

# the last layer of a residual branch; zero, so that every block starts as the identity
_BRANCH_ENDS = ("conv2", "proj_out")


def initialise(model: MAGVITv2) -> None:
    """Draw weights from torch's global generator: He's variance, and residual branches that start at 0.

    On the mini world this halves the steps that torch's default needs for the same fidelity.
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
