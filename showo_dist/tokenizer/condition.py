"""RecA's condition picture: the target with its detail taken away (specification, section 7)."""

import torch.nn.functional as F
from torch import Tensor


def condition_pixels(pixels_B3HW: Tensor, down_scale: int, resize_back: bool = False) -> Tensor:
    """Shrink pictures bilinearly by ``down_scale``; with ``resize_back`` enlarge them again (a blur)."""
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
