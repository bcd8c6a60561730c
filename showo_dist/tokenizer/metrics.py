"""Metrics of tokenizer training: means between two log lines, codebook use, and evaluation."""

import time
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from showo_data.images import to_images
from showo_dist.logging.grids import labelled_grid
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.ranks import Ranks


class Window:
    """Sums over the steps between two log lines."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.terms: dict[str, Tensor] = {}
        self.steps = 0
        self.waited_s = 0.0

    def add(self, terms: dict[str, Tensor], share: float) -> None:
        """Add this rank's means of a step, weighted by its ``share`` of the global batch."""
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0) + value.detach() * share
        self.steps += 1

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Average over all ranks and steps. Collective."""
        sums = ranks.sum(torch.stack(list(self.terms.values())))
        return dict(zip(self.terms, (sums / self.steps).tolist(), strict=True))


# Warn when fewer codes are in use than this fraction of those that could have occurred.
LEAST_SHARE = 0.03


class CodeUsage:
    """Counts codes over a window of steps."""

    def __init__(self, codebook_size: int, device: torch.device) -> None:
        self.counts_K = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def add(self, codes: Tensor) -> None:
        """Count codes of any shape."""
        self.counts_K += torch.bincount(codes.flatten(), minlength=len(self.counts_K))

    def take(self) -> Tensor:
        """Return the counts since the last call, and start again from 0."""
        counts_K, self.counts_K = self.counts_K, torch.zeros_like(self.counts_K)
        return counts_K


def summary(counts_K: Tensor) -> dict[str, float]:
    """Number of codes in use, and their perplexity: how many equally frequent codes have the same entropy."""
    share_K = counts_K.double() / counts_K.sum().clamp_min(1)
    perplexity = torch.exp(-torch.xlogy(share_K, share_K).sum())
    return {"codes_in_use": int((counts_K > 0).sum()), "code_perplexity": float(perplexity)}


def collapse_warning(counts_K: Tensor) -> str | None:
    """Warning if hardly any codes are in use, with the keys to change; else None."""
    used, possible = int((counts_K > 0).sum()), min(len(counts_K), int(counts_K.sum()))
    if used >= max(3, LEAST_SHARE * possible):
        return None
    return (
        f"CODEBOOK COLLAPSE: {used} of {len(counts_K)} codes in use. "
        "Raise loss.codebook_entropy, or lower loss.sample_entropy, loss.commitment "
        "or optimizer.learning_rate."
    )


_BATCH = 16
_COLUMNS = 8
_ROWS = 4  # pairs of rows of a grid: originals above their reconstructions
_TILE = 128  # pixels


@dataclass
class Evaluation:
    """Result of :func:`evaluate`; the grid shows originals above their reconstructions."""

    metrics: dict[str, float]
    grid: Image.Image


@torch.no_grad()
def evaluate(model: MAGVITv2, pixels_B3HW: Tensor) -> Evaluation:
    """Encode images (B, 3, H, W) to codes and decode them again, in float32 and eval mode."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    codes, reconstructions = [], []
    for part_B3HW in pixels_B3HW.split(_BATCH):
        codes.append(model.encode(part_B3HW.to(device)))
        height, width = (side // model.config.downsample for side in part_B3HW.shape[-2:])
        grid_Bhw = codes[-1].view(-1, height, width)
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
    """Peak signal-to-noise ratio in dB, mean over images; the output is clipped to [-1, 1]."""
    error_B = (output_B3HW.clamp(-1, 1) - target_B3HW).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error_B.clamp_min(1e-10))).mean())


def _grid(pixels_B3HW: Tensor, output_B3HW: Tensor) -> Image.Image:
    originals, copies = to_images(pixels_B3HW), to_images(output_B3HW)
    rows = []
    for start in range(0, min(len(originals), _ROWS * _COLUMNS), _COLUMNS):
        rows += [originals[start : start + _COLUMNS], copies[start : start + _COLUMNS]]
    titles = ["original", "reconstruction"] * (len(rows) // 2)
    return labelled_grid(rows, row_titles=titles, tile=_TILE)
