"""From the model's pixels to images that can be looked at."""

from PIL import Image
from torch import Tensor


def to_images(pixels_B3HW: Tensor) -> list[Image.Image]:
    """Pixels in [-1, 1] (values beyond are clipped) to 8-bit RGB images."""
    bytes_BHW3 = ((pixels_B3HW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(image) for image in bytes_BHW3.cpu().numpy()]
