"""The image tokenizer: encoder, look-up-free quantizer, decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from showo_dist.models.folder import check_fit, local_folder, read_weights
from showo_dist.models.magvitv2 import pretrained
from showo_dist.models.magvitv2.config import MAGVITv2Config
from showo_dist.models.magvitv2.decoder import Decoder
from showo_dist.models.magvitv2.encoder import Encoder
from showo_dist.models.magvitv2.quantizer import LookupFreeQuantizer, QuantizerLosses


@dataclass
class TokenizerOutput:
    """What one training forward gives."""

    reconstruction: Tensor
    """(B, 3, H, W), about [-1, 1]."""

    codes: Tensor
    """(B, N), int64."""

    losses: QuantizerLosses


class MAGVITv2(nn.Module):
    """Pixels in [-1, 1] to codes and back; names and shapes as in the released checkpoint."""

    def __init__(self, config: MAGVITv2Config | None = None) -> None:
        """Build with random weights; raises ``ValueError`` when the sizes do not fit together."""
        super().__init__()
        self.config = config or MAGVITv2Config()
        self.config.validate()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quantize = LookupFreeQuantizer(self.config.bits)

    def encode_latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels to continuous latents (B, bits, H/d, W/d); both sides must be multiples of d."""
        height, width = pixels_B3HW.shape[-2:]
        if height % self.config.downsample or width % self.config.downsample:
            raise ValueError(
                f"picture of {width}×{height} pixels: the tokenizer needs multiples "
                f"of {self.config.downsample}"
            )
        return self.encoder(pixels_B3HW)

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels to codes (B, N), int64, row by row; N = H·W / downsample²."""
        return self.quantize.codes(self.encode_latents(pixels_B3HW))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to pixels (B, 3, H, W), about [-1, 1].

        Args:
            codes: (B, h, w), or (B, N) of a square grid.
        """
        return self.decoder(self.quantize.lookup(_as_grid(codes)))

    def forward(
        self, pixels_B3HW: Tensor, pool: Callable[[Tensor], Tensor] | None = None
    ) -> TokenizerOutput:
        """Reconstruct, with the loss terms of the codes; ``pool`` as in the quantizer."""
        quantized_BChw, codes_BN, losses = self.quantize(self.encode_latents(pixels_B3HW), pool)
        return TokenizerOutput(self.decoder(quantized_BChw), codes_BN, losses)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``."""
        pretrained.save(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, source: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load a folder or a hub id, frozen and in eval mode.

        Raises:
            FileNotFoundError: naming the file that is not there.
            ValueError: naming the weights that do not fit the config.
        """
        folder = local_folder(source)
        with torch.device("meta"):
            model = cls(pretrained.read_config(folder))
        weights = read_weights(folder)
        # constants of the codebook size; some releases leave them out
        constants = LookupFreeQuantizer(model.config.bits).state_dict(prefix="quantize.")
        check_fit(folder, model.state_dict(), constants | weights)
        model.load_state_dict(constants | weights, assign=True)
        return model.to(device).requires_grad_(False).eval()


def _as_grid(codes: Tensor) -> Tensor:
    if codes.dim() == 3:
        return codes
    side = isqrt(codes.shape[1])
    if side * side != codes.shape[1]:
        raise ValueError(f"{codes.shape[1]} codes are not a square: pass them as (B, h, w)")
    return codes.view(-1, side, side)
