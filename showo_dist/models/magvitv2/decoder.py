"""Quantised latents to pixels."""

import torch.nn.functional as F
from torch import Tensor, nn

from showo_dist.models.magvitv2.config import MAGVITv2Config
from showo_dist.models.magvitv2.layers import Level, MiddleBlock, Upsample, group_norm


class Decoder(nn.Module):
    """Convolutional decoder, (B, bits, h, w) of ±1 to pixels (B, 3, h·d, w·d), about [-1, 1]."""

    def __init__(self, config: MAGVITv2Config) -> None:
        super().__init__()
        sizes, groups = config.decoder, config.norm_groups
        widths = sizes.widths
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = MiddleBlock(widths[-1], groups)
        self.up = nn.ModuleList()  # up.0 is the full resolution, and runs last
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
