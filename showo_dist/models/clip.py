"""The frozen CLIP vision tower that RecA and the CLIP variants understand images with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

FEATURE_LAYER = -2  # the published choice (docs/specification.md, section 7)


class ClipTower(nn.Module):
    """Images to patch features.

    Args:
        tower: transformers' model, for example CLIP ViT-L/14-336.
    """

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, source: str) -> "ClipTower":
        """Load a folder or hub id.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            return cls(CLIPVisionModel.from_pretrained(source))
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"model.clip_model_name = {source}: {reason}") from None

    @property
    def resolution(self) -> int:
        """Side of the images it reads, in pixels."""
        return self.tower.config.image_size

    @torch.no_grad()
    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Features (B, patches, width) of ``hidden_states[-2]``, class token dropped.

        Args:
            pixels_B3HW: normalised by the CLIP image processor; any other size is resized bilinearly,
                which is how RecA feeds its [-1, 1] images.
        """
        size = (self.resolution, self.resolution)
        if pixels_B3HW.shape[-2:] != size:
            pixels_B3HW = F.interpolate(pixels_B3HW, size, mode="bilinear", align_corners=False)
        output = self.tower(pixels_B3HW, output_hidden_states=True)
        return output.hidden_states[FEATURE_LAYER][:, 1:]
