"""Measure the quality of a trained image tokenizer on the mini world, and its cost.

    python benchmarks/tokenizer.py runs/mini/tokenizer/final 'data/mini/val-*.tar'

Prints PSNR, the objects that the checker reads from reconstructions, codes in use, the time to encode an
image, and the fraction of codes that change with the batch size and with bf16.
"""

import argparse
import time
from collections import Counter
from glob import glob

import torch
from torch import Tensor

from showo_data import FlowSpec, Sample, Source, vq_transform
from showo_data.images import to_images
from showo_data.mini import read_image
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.numerics import autocast
from showo_dist.tokenizer.metrics import evaluate

CPU = torch.device("cpu")


def images(urls: list[str], resolution: int, limit: int) -> Tensor:
    """The first ``limit`` images of some shards."""
    transform = vq_transform(resolution)
    source = Source(
        FlowSpec(
            flow="image", kind="image", urls=tuple(urls), batch=1, transform=transform, encoded=()
        )
    )
    samples = [source[i] for i in range(min(limit, len(source)))]
    found = [s.image_3HW for s in samples if isinstance(s, Sample)]
    return torch.stack([image for image in found if image is not None])


@torch.no_grad()
def tokenizer_roundtrip(model: MAGVITv2, pixels_B3HW: Tensor) -> Tensor:
    return torch.cat([model.decode(model.encode(part)) for part in pixels_B3HW.split(16)])


def read_back(pixels_B3HW: Tensor, output_B3HW: Tensor) -> tuple[float, float]:
    """Fractions of objects whose colour and shape are read again, and of images where all objects are."""
    kept = total = same = 0
    for before, after in zip(to_images(pixels_B3HW), to_images(output_B3HW), strict=True):
        wanted, seen = (
            Counter((o.colour, o.shape) for o in read_image(i)) for i in (before, after)
        )
        kept, total = kept + (wanted & seen).total(), total + wanted.total()
        same += wanted == seen
    return kept / total, same / len(pixels_B3HW)


def flips(model: MAGVITv2, pixels_B3HW: Tensor) -> dict[str, float]:
    """Fraction of codes that differ from those of images encoded one by one in fp32."""
    single = torch.cat([model.encode(part) for part in pixels_B3HW.split(1)])
    batch = torch.cat([model.encode(part) for part in pixels_B3HW.split(32)])
    with autocast("bf16", CPU):
        rounded = torch.cat([model.encode(part) for part in pixels_B3HW.split(32)])
    return {
        "codes changed by a batch of 32": (batch != single).float().mean().item(),
        "codes changed by bf16": (rounded != single).float().mean().item(),
    }


def encode_ms(model: MAGVITv2, pixels_B3HW: Tensor, precision: str) -> float:
    """CPU milliseconds per image on one core, the best of five batches of 32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(5):
        start = time.process_time()
        with autocast(precision, CPU):
            model.encode(pixels_B3HW[:32])
        times.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return 1e3 * min(times) / len(pixels_B3HW[:32])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer")
    parser.add_argument("shards")
    parser.add_argument("--images", type=int, default=400)
    arguments = parser.parse_args()
    model = MAGVITv2.from_pretrained(arguments.tokenizer)
    pixels = images(sorted(glob(arguments.shards)), model.config.resolution, arguments.images)
    objects, whole = read_back(pixels, tokenizer_roundtrip(model, pixels))
    rows = {name.removeprefix("eval/"): v for name, v in evaluate(model, pixels).metrics.items()}
    rows |= {"objects read back": objects, "images read back whole": whole}
    rows |= flips(model, pixels)
    rows |= {f"encode {p}, CPU ms": encode_ms(model, pixels, p) for p in ("fp32", "bf16")}
    for name, value in rows.items():
        print(f"{name:<32} {value:.4g}")


if __name__ == "__main__":
    main()
