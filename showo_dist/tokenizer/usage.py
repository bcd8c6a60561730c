"""How much of the codebook is in use, and the alarm when it collapses."""

import torch
from torch import Tensor

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
