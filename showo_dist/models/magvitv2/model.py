"""The tokenizer's ``config.json``, and writing its folder.

The image tokenizer: encoder, look-up-free quantizer, decoder."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from showo_dist.models.magvitv2.config import MAGVITv2Config, StackConfig
from showo_dist.models.magvitv2.layers import Decoder, Encoder
from showo_dist.models.magvitv2.quantizer import LookupFreeQuantizer, QuantizerLosses
from showo_dist.models.weights.folder import (
    CONFIG_NAME,
    SAFETENSORS_NAME,
    check_fit,
    local_folder,
    read_json,
    read_weights,
)


def save(folder: str | Path, config: MAGVITv2Config, state: dict[str, Tensor]) -> None:
    """Write config and weights; the weights last, so that a broken write is seen as missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(asdict(config), indent=2) + "\n")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(contiguous, folder / SAFETENSORS_NAME, metadata={"format": "pt"})


def read_config(folder: Path) -> MAGVITv2Config:
    """Sizes from ``config.json``; a key that is absent has the released model's value.

    Raises:
        FileNotFoundError, ValueError: the file is missing, not JSON, or has a key that is not known.
    """
    path = folder / CONFIG_NAME
    values = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    _check_keys(path, values, MAGVITv2Config)
    for stack in ("encoder", "decoder"):
        if stack in values:
            _check_keys(path, values[stack], StackConfig)
            values[stack] = StackConfig(**values[stack])
    return MAGVITv2Config(**values)


def _check_keys(path: Path, values: dict[str, Any], schema: type) -> None:
    known = [item.name for item in fields(schema)]
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}; known are {', '.join(known)}")


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
                f"image of {width}×{height} pixels: the tokenizer needs multiples "
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
        save(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, source: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load a folder or a hub id, frozen and in eval mode.

        Raises:
            FileNotFoundError: naming the file that is not there.
            ValueError: naming the weights that do not fit the config.
        """
        folder = local_folder(source)
        with torch.device("meta"):
            model = cls(read_config(folder))
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
