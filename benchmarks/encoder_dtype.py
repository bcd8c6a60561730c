"""Count the image codes that change with the format and layout of the tokenizer (``model.encoder_dtype``).

    python benchmarks/encoder_dtype.py [FOLDER] [--photos photo.jpg …] [--crops 8] [--side 256]

FOLDER holds a tokenizer; without it, one of the released shape with random weights is used. Images are crops
of photographs; without any, of the one that matplotlib brings. TF32 is emulated by rounding both operands of
every convolution to its 10 bits of mantissa.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from showo_dist.models.magvitv2 import MAGVITv2

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def crops(paths: list[Path], count: int, side: int, seed: int = 0) -> Tensor:
    """Square crops of random places and sizes, (count, 3, side, side) in [-1, 1]."""
    rng, found = np.random.default_rng(seed), []
    photos = [Image.open(path).convert("RGB") for path in paths]
    for number in range(count):
        photo = photos[number % len(photos)]
        edge = int(rng.uniform(0.3, 1.0) * min(photo.size))
        left, top = (int(rng.integers(full - edge + 1)) for full in photo.size)
        box = (left, top, left + edge, top + edge)
        pixels = np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC, box))
        found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(found)


def rounded(x: Tensor) -> Tensor:
    """The nearest numbers with 10 bits of mantissa, as tensor cores read fp32."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def in_tf32(model: MAGVITv2) -> None:
    """Round the operands of all convolutions."""
    for layer in model.encoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = rounded(layer.weight.data)
            layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))


def channels_last(model: MAGVITv2) -> None:
    model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


VARIANTS: dict[str, Callable[[MAGVITv2], None]] = {
    "fp32, channels last": channels_last,
    "TF32, emulated": in_tf32,
    "bf16": lambda model: model.encode_in("bf16"),
}


def encoded(model: MAGVITv2, pixels_B3HW: Tensor) -> Tensor:
    return torch.cat([model.encode(part) for part in pixels_B3HW.split(1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("--photos", type=Path, nargs="+", default=[PHOTO])
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--side", type=int, default=256)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    named = arguments.tokenizer
    model = (MAGVITv2.from_pretrained(named) if named else MAGVITv2()).requires_grad_(False).eval()
    pixels = crops(arguments.photos, arguments.crops, arguments.side)
    wanted = encoded(model, pixels)
    bits = model.config.bits
    print(f"{wanted.numel():,} codes of {bits} bits, {len(wanted.unique()):,} different ones")
    for name, change in VARIANTS.items():
        other = deepcopy(model)
        change(other)
        found = encoded(other, pixels)
        flipped = sum(((found ^ wanted) >> bit) & 1 for bit in range(bits))
        codes = (found != wanted).float().mean().item()
        print(
            f"{name:<22} {codes:.3%} of the codes, {flipped.float().mean().item() / bits:.4%} of the bits"
        )


if __name__ == "__main__":
    main()
