"""Pixels to latents."""

import torch.nn.functional as F
from torch import Tensor, nn

from showo_dist.models.magvitv2.config import MAGVITv2Config
from showo_dist.models.magvitv2.layers import Downsample, Level, MiddleBlock, group_norm


class Encoder(nn.Module):
    """Convolutional encoder, (B, 3, H, W) in [-1, 1] to latents (B, bits, H/d, W/d)."""

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
