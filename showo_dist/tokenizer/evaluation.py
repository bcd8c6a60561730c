"""How faithful the tokenizer is on pictures it is not trained on."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.pictures import to_images
from showo_dist.report.grids import labelled_grid
from showo_dist.tokenizer.usage import summary

_BATCH = 16
_COLUMNS = 8  # pairs of rows on a grid: originals above their reconstructions
_ROWS = 4
_TILE = 128


@dataclass
class Evaluation:
    """Metrics, and originals above reconstructions as one picture."""

    metrics: dict[str, float]
    grid: Image.Image


@torch.no_grad()
def evaluate(model: MAGVITv2, pixels_B3HW: Tensor) -> Evaluation:
    """Encode to codes and decode again, float32 in eval mode; leaves the model's mode as it was."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    codes, reconstructions = [], []
    for part_B3HW in pixels_B3HW.split(_BATCH):
        latents_BChw = model.encode_latents(part_B3HW.to(device))
        codes.append(model.quantize.codes(latents_BChw))
        grid_Bhw = codes[-1].view(len(part_B3HW), *latents_BChw.shape[-2:])
        reconstructions.append(model.decode(grid_Bhw).cpu())
    model.train(was_training)
    output_B3HW = torch.cat(reconstructions)
    counts_K = torch.bincount(torch.cat(codes).flatten(), minlength=model.config.codebook_size)
    metrics = {"psnr": psnr(output_B3HW, pixels_B3HW), **summary(counts_K)}
    return Evaluation(
        {f"eval/{name}": value for name, value in metrics.items()},
        _grid(pixels_B3HW, output_B3HW),
    )


def psnr(output_B3HW: Tensor, target_B3HW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over pictures; pixels in [-1, 1], clipped to that."""
    error_B = (output_B3HW.clamp(-1, 1) - target_B3HW).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error_B.clamp_min(1e-10))).mean())


def _grid(pixels_B3HW: Tensor, output_B3HW: Tensor) -> Image.Image:
    originals, copies = to_images(pixels_B3HW), to_images(output_B3HW)
    rows = []
    for start in range(0, min(len(originals), _ROWS * _COLUMNS), _COLUMNS):
        rows += [originals[start : start + _COLUMNS], copies[start : start + _COLUMNS]]
    titles = ["original", "reconstruction"] * (len(rows) // 2)
    return labelled_grid(rows, row_titles=titles, tile=_TILE)
