"""Blocks shared by encoder and decoder; attribute names are those of the released checkpoints."""

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6  # of the released model


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class ResBlock(nn.Module):
    """Two normalised 3×3 convolutions beside a shortcut, which is 1×1 when the width changes."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        shortcut = getattr(self, "nin_shortcut", None)
        return h_BCHW + (x_BCHW if shortcut is None else shortcut(x_BCHW))


class AttentionBlock(nn.Module):
    """One head of self-attention over all places of the grid, as wide as the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        q_B1ND, k_B1ND, v_B1ND = (
            layer(h_BCHW).flatten(2).transpose(1, 2).unsqueeze(1)
            for layer in (self.q, self.k, self.v)
        )
        h_B1ND = F.scaled_dot_product_attention(q_B1ND, k_B1ND, v_B1ND)
        h_BCHW = h_B1ND.squeeze(1).transpose(1, 2).reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(h_BCHW)


class MiddleBlock(nn.Module):
    """Residual, attention, residual at the resolution of the codes."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class Downsample(nn.Module):
    """Strided convolution that halves both sides; zeros are added right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling of both sides, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, optionally with a change of resolution after them."""

    block: nn.ModuleList

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.block = nn.ModuleList(
            ResBlock(width, channels_out, groups) for width in widths[:blocks]
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.block:
            x_BCHW = block(x_BCHW)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x_BCHW = getattr(self, name)(x_BCHW)
        return x_BCHW
