"""The convolutional encoder and decoder, and their blocks.

Attributes are named as in the released checkpoints, because they name the weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from showo_dist.models.magvitv2.config import MAGVITv2Config

NORM_EPS = 1e-6  # the released model's; torch's default is 1e-5


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """A GroupNorm as the released model has it."""
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
    """Self-attention over all positions of the grid, with one head as wide as the channels."""

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
        if x_BCHW.is_cuda:
            # Only the kernel of contiguous inputs is independent of TF32, which training switches on.
            q_B1ND, k_B1ND, v_B1ND = (x.contiguous() for x in (q_B1ND, k_B1ND, v_B1ND))
        h_B1ND = F.scaled_dot_product_attention(q_B1ND, k_B1ND, v_B1ND)
        h_BCHW = h_B1ND.squeeze(1).transpose(1, 2).reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(h_BCHW)


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block, at the resolution of the codes."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class Downsample(nn.Module):
    """Strided convolution that halves both sides; zeros are padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # The published encoder pads on two sides only; symmetric padding would shift all latents.
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling of both sides by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, optionally followed by a ``downsample`` or ``upsample``."""

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


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, bits, H/d, W/d); d is ``config.downsample``."""

    def __init__(self, config: MAGVITv2Config) -> None:
        super().__init__()
        sizes, groups = config.encoder, config.norm_groups
        widths = sizes.widths
        self.conv_in = nn.Conv2d(config.image_channels, sizes.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (before, width) in enumerate(
            zip([sizes.channels, *widths], widths, strict=False)
        ):
            level = Level(before, width, sizes.res_blocks[index], groups)
            if index + 1 < len(widths):
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = MiddleBlock(widths[-1], groups)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(pixels_B3HW)
        for level in self.down:
            h_BCHW = level(h_BCHW)
        h_BCHW = self.norm_out(self.mid(h_BCHW))
        return self.quant_conv(self.conv_out(F.silu(h_BCHW)))


class Decoder(nn.Module):
    """Latents (B, bits, h, w) of ±1 to pixels (B, 3, h·d, w·d), about in [-1, 1]."""

    def __init__(self, config: MAGVITv2Config) -> None:
        super().__init__()
        sizes, groups = config.decoder, config.norm_groups
        widths = sizes.widths
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = MiddleBlock(widths[-1], groups)
        self.up = nn.ModuleList()  # as released, up.0 has the full resolution and runs last
        for index, (width, before) in enumerate(
            zip(widths, [*widths[1:], widths[-1]], strict=True)
        ):
            level = Level(before, width, sizes.res_blocks[index], groups)
            if index > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], config.image_channels, 3, padding=1)

    def forward(self, quantized_BChw: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(self.post_quant_conv(quantized_BChw)))
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW)
        return self.conv_out(F.silu(self.norm_out(h_BCHW)))
