"""RecA's condition image: the target with its detail taken away (docs/specification.md, section 7).

The frozen encoders between samples and sequences: image codes and understanding features."""

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
import torch.nn.functional as F
from torch import Tensor

from showo_data import Sample
from showo_dist.models.clip import ClipTower
from showo_dist.models.magvitv2 import MAGVITv2


def condition_pixels(pixels_B3HW: Tensor, down_scale: int, resize_back: bool = False) -> Tensor:
    """Shrink images bilinearly by ``down_scale``; with ``resize_back`` enlarge them again (a blur)."""
    height, width = pixels_B3HW.shape[-2:]
    small = F.interpolate(
        pixels_B3HW,
        (height // down_scale, width // down_scale),
        mode="bilinear",
        align_corners=False,
    )
    if not resize_back:
        return small
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)


class Encoders:
    """Turns images into codes and features, a whole flow at a time; encoded samples pass through.

    Args:
        vq: the image tokenizer, or None when every sample is encoded.
        clip: the CLIP tower of CLIP models, else None.
        down_scale, resize_back: RecA's condition image (docs/specification.md, section 7).
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
        return _filled([s.codes_N for s in samples], samples, self._encode)

    def condition_codes(self, samples: Seq[Sample]) -> list[Tensor]:
        """Codes (G,) of each sample's condition image."""

        def encode(pixels_B3HW: Tensor) -> Tensor:
            return self._encode(condition_pixels(pixels_B3HW, self.down_scale, self.resize_back))

        return _filled([s.condition_codes_G for s in samples], samples, encode)

    def features(self, samples: Seq[Sample]) -> list[Tensor]:
        """CLIP features (patches, width) of each sample's image, fp32 on the CPU."""
        return _filled([s.features_PC for s in samples], samples, self._see)

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        assert self.vq is not None, "images need the image tokenizer"
        device = next(self.vq.parameters()).device
        return self.vq.encode(pixels_B3HW.to(device)).cpu()

    def _see(self, pixels_B3HW: Tensor) -> Tensor:
        assert self.clip is not None
        device = next(self.clip.parameters()).device
        return self.clip(pixels_B3HW.to(device)).float().cpu()


def _filled(
    known: list[Tensor | None], samples: Seq[Sample], encode: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What is known of each sample; of the others, computed from their images in one batch."""
    images = [s.image_3HW for s, k in zip(samples, known, strict=True) if k is None]
    assert all(p is not None for p in images), "a source gives an image or what stands for it"
    fresh = iter(encode(torch.stack([p for p in images if p is not None])) if images else ())
    return [next(fresh) if k is None else k for k in known]
