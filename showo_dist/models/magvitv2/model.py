"""The image tokenizer (encoder, look-up-free quantizer, decoder), and reading and writing its folder."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from showo_dist.checkpoint.parts import save_tensors
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
from showo_dist.runtime.numerics import exact_convolutions


@dataclass
class TokenizerOutput:
    """Result of one training forward."""

    reconstruction: Tensor
    """(B, 3, H, W), about in [-1, 1]."""

    codes: Tensor
    """(B, N), int64."""

    losses: QuantizerLosses


class MAGVITv2(nn.Module):
    """Pixels in [-1, 1] to codes and back; weights have the names and shapes of the released checkpoint."""

    def __init__(self, config: MAGVITv2Config | None = None) -> None:
        """Build with random weights; None means the released sizes.

        Raises:
            ValueError: the sizes do not fit together.
        """
        super().__init__()
        self.config = config or MAGVITv2Config()
        self.config.validate()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quantize = LookupFreeQuantizer(self.config.bits)
        self.precision = "fp32"

    def encode_in(self, precision: str) -> None:
        """Let :meth:`encode` compute in ``tf32`` (on NVIDIA GPUs) or ``bf16``, which change some codes.

        Images are then laid out as tensor cores want them. Decoding stays in fp32, as it is in training.
        """
        self.precision = precision
        if precision != "fp32":
            self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if precision == "bf16":
            self.encoder.to(torch.bfloat16)

    def encode_latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels to continuous latents (B, bits, H/d, W/d); d is ``config.downsample``.

        Raises:
            ValueError: H or W is not a multiple of d.
        """
        height, width = pixels_B3HW.shape[-2:]
        if height % self.config.downsample or width % self.config.downsample:
            raise ValueError(
                f"image of {width}×{height} pixels: the tokenizer needs multiples "
                f"of {self.config.downsample}"
            )
        return self.encoder(pixels_B3HW)

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels to codes (B, N), int64, row by row of the grid; N = H·W / d²."""
        with exact_convolutions(allow_tf32=self.precision == "tf32"):
            pixels_B3HW = pixels_B3HW.to(next(self.encoder.parameters()).dtype)
            return self.quantize.codes(self.encode_latents(pixels_B3HW))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to pixels (B, 3, H, W), about in [-1, 1].

        Args:
            codes: (B, h, w), or (B, N) of a square grid.

        Raises:
            ValueError: N is not a square number.
        """
        with exact_convolutions():
            return self.decoder(self.quantize.lookup(_as_grid(codes)))

    def forward(
        self, pixels_B3HW: Tensor, pool: Callable[[Tensor], Tensor] | None = None
    ) -> TokenizerOutput:
        """Encode, quantise and decode, with the loss terms of the quantizer; ``pool`` as there."""
        quantized_BChw, codes_BN, losses = self.quantize(self.encode_latents(pixels_B3HW), pool)
        return TokenizerOutput(self.decoder(quantized_BChw), codes_BN, losses)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, which is created if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        # The weights come last: an interrupted write leaves a folder without weights, which is refused.
        weights = {n: t.detach().cpu().contiguous() for n, t in self.state_dict().items()}
        save_tensors(weights, folder / SAFETENSORS_NAME)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load a folder or a hub id, frozen and in eval mode.

        Raises:
            FileNotFoundError: a file is missing; it is named.
            ValueError: weights do not fit the config; they are named.
        """
        folder = local_folder(source)
        config = read_config(folder)
        weights = read_weights(folder)
        _check_blocks(folder / CONFIG_NAME, config, len(weights))
        with torch.device("meta"):
            model = cls(config)
        # The quantizer's buffers follow from the number of bits; some releases leave them out.
        constants = LookupFreeQuantizer(model.config.bits).state_dict(prefix="quantize.")
        check_fit(folder, model.state_dict(), constants | weights)
        # Assigned, not copied: the meta model never takes memory of its own. Weights that are stored in half
        # precision compute in fp32 too.
        whole = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
        model.load_state_dict(constants | whole, assign=True)
        return model.to(device).requires_grad_(False).eval()


def _as_grid(codes: Tensor) -> Tensor:
    if codes.dim() == 3:
        return codes
    side = isqrt(codes.shape[1])
    if side * side != codes.shape[1]:
        raise ValueError(f"{codes.shape[1]} codes are not a square: pass them as (B, h, w)")
    return codes.view(-1, side, side)


def read_config(folder: Path) -> MAGVITv2Config:
    """Read the sizes from ``config.json``; absent keys have the released model's value.

    Raises:
        FileNotFoundError, ValueError: the file is missing, is not JSON, or has an unknown key.
    """
    path = folder / CONFIG_NAME
    values = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    _check_keys(path, values, MAGVITv2Config)
    for stack in ("encoder", "decoder"):
        if stack in values:
            _check_keys(path, values[stack], StackConfig)
            values[stack] = StackConfig(**values[stack])
    return MAGVITv2Config(**values)


def _check_blocks(path: Path, config: MAGVITv2Config, tensors: int) -> None:
    """Refuse more blocks than there are tensors, before any is made: a file may hold any number."""
    for name, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        blocks = sum(n for n in stack.res_blocks if isinstance(n, int))
        if blocks > tensors:
            raise ValueError(
                f"{path}: {name}.res_blocks = {list(stack.res_blocks)}: its weights are {tensors} tensors"
            )


def _check_keys(path: Path, values: dict[str, Any], schema: type) -> None:
    known = [item.name for item in fields(schema)]
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}; known are {', '.join(known)}")
