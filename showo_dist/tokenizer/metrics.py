"""What happened between two lines of metrics.

How much of the codebook is in use, and the alarm when it collapses.

How faithful the tokenizer is on images it is not trained on."""

import time
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from showo_dist.logging.grids import labelled_grid
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.images import to_images
from showo_dist.runtime.ranks import Ranks


class Window:
    """Sums over the steps between two lines of metrics."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.terms: dict[str, Tensor] = {}
        self.steps = 0
        self.waited_s = 0.0

    def add(self, terms: dict[str, Tensor], share: float) -> None:
        """Add this rank's ``share`` (of the global batch) of the terms."""
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0) + value.detach() * share
        self.steps += 1

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Means over all ranks and steps; collective."""
        sums = ranks.sum(torch.stack(list(self.terms.values())))
        return dict(zip(self.terms, (sums / self.steps).tolist(), strict=True))


LEAST_SHARE = 0.03  # codes in use, of those that the window could have shown, below which we warn


class CodeUsage:
    """Counts codes over a window of steps."""

    def __init__(self, codebook_size: int, device: torch.device) -> None:
        self.counts_K = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def add(self, codes: Tensor) -> None:
        """Count codes of any shape."""
        self.counts_K += torch.bincount(codes.flatten(), minlength=len(self.counts_K))

    def take(self) -> Tensor:
        """The counts since the last call."""
        counts_K, self.counts_K = self.counts_K, torch.zeros_like(self.counts_K)
        return counts_K


def summary(counts_K: Tensor) -> dict[str, float]:
    """Codes in use, and their perplexity: the number of equally frequent codes of the same entropy."""
    share_K = counts_K.double() / counts_K.sum().clamp_min(1)
    perplexity = torch.exp(-torch.xlogy(share_K, share_K).sum())
    return {"codes_in_use": int((counts_K > 0).sum()), "code_perplexity": float(perplexity)}


def collapse_warning(counts_K: Tensor) -> str | None:
    """What to tell the user when hardly any codes are in use; None while all is well."""
    used, possible = int((counts_K > 0).sum()), min(len(counts_K), int(counts_K.sum()))
    if used >= max(3, LEAST_SHARE * possible):
        return None
    return (
        f"CODEBOOK COLLAPSE: {used} of {len(counts_K)} codes in use. "
        "Raise loss.codebook_entropy, or lower loss.sample_entropy, loss.commitment "
        "or optimizer.learning_rate."
    )


_BATCH = 16
_COLUMNS = 8  # pairs of rows on a grid: originals above their reconstructions
_ROWS = 4
_TILE = 128


@dataclass
class Evaluation:
    """Metrics, and originals above reconstructions as one image."""

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
    """Peak signal-to-noise ratio in dB, mean over images; pixels in [-1, 1], clipped to that."""
    error_B = (output_B3HW.clamp(-1, 1) - target_B3HW).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error_B.clamp_min(1e-10))).mean())


def _grid(pixels_B3HW: Tensor, output_B3HW: Tensor) -> Image.Image:
    originals, copies = to_images(pixels_B3HW), to_images(output_B3HW)
    rows = []
    for start in range(0, min(len(originals), _ROWS * _COLUMNS), _COLUMNS):
        rows += [originals[start : start + _COLUMNS], copies[start : start + _COLUMNS]]
    titles = ["original", "reconstruction"] * (len(rows) // 2)
    return labelled_grid(rows, row_titles=titles, tile=_TILE)
