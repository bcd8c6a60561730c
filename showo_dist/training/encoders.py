"""The frozen encoders between samples and sequences: image codes and understanding features."""

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from showo_data import Sample
from showo_dist.models.clip import ClipTower
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.tokenizer.condition import condition_pixels


class Encoders:
    """Turns pictures into codes and features, a whole flow at a time; encoded samples pass through.

    Args:
        vq: the image tokenizer, or None when every sample is encoded.
        clip: the CLIP tower of CLIP models, else None.
        down_scale, resize_back: RecA's condition picture (specification, section 7).
    """

    def __init__(
        self,
        vq: MAGVITv2 | None,
        clip: ClipTower | None,
        *,
        down_scale: int = 2,
        resize_back: bool = False,
    ) -> None:
        self.vq, self.clip = vq, clip
        self.down_scale, self.resize_back = down_scale, resize_back

    def codes(self, samples: Seq[Sample]) -> list[Tensor]:
        """Image codes (N,) of each sample, int64 on the CPU."""
        return self._codes([s.codes_N for s in samples], lambda: _stacked(samples))

    def condition_codes(self, samples: Seq[Sample]) -> list[Tensor]:
        """Codes (G,) of each sample's condition picture."""
        return self._codes(
            [s.condition_codes_G for s in samples],
            lambda: condition_pixels(_stacked(samples), self.down_scale, self.resize_back),
        )

    def features(self, samples: Seq[Sample]) -> list[Tensor]:
        """CLIP features (patches, width) of each sample's picture, fp32 on the CPU."""
        if not samples:
            return []
        assert self.clip is not None
        pixels = _stacked(samples).to(next(self.clip.parameters()).device)
        return list(self.clip(pixels).float().cpu())

    def _codes(self, known: list[Tensor | None], pixels: Callable[[], Tensor]) -> list[Tensor]:
        present = [codes for codes in known if codes is not None]
        if len(present) == len(known):
            return present
        assert self.vq is not None, "pictures need the image tokenizer"
        device = next(self.vq.parameters()).device
        return list(self.vq.encode(pixels().to(device)).cpu())


def _stacked(samples: Seq[Sample]) -> Tensor:
    pictures = [s.image_3HW for s in samples]
    assert all(p is not None for p in pictures), "a batch is encoded as a whole or not at all"
    return torch.stack([p for p in pictures if p is not None])
