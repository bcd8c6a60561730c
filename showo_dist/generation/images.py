"""Pictures and masks as they come, to what the encoders take."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from showo_data import vq_transform
from showo_data.images import decode

_PROPORTION_SLACK = 0.01  # of the quotient of the sides; sizes are whole pixels


def read_picture(path: str | Path) -> Image.Image:
    """The RGB picture of a file, turned as its EXIF orientation says.

    Raises:
        ValueError: there is no such file, or no picture in it; it is named.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return decode(data)
    except Exception as error:  # Pillow's formats do not share an exception
        reason = str(error).partition(" <_io")[0]
        raise ValueError(f"{path}: not a picture that can be read ({reason})") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB picture; what it was stays as it is."""
    return ImageOps.exif_transpose(image).convert("RGB")


def pixels(images: list[Image.Image], resolution: int) -> Tensor:
    """Pictures of any size to (B, 3, side, side) in [-1, 1], resized and cropped as in training."""
    transform = vq_transform(resolution)
    return torch.stack([transform(as_rgb(image)) for image in images])


def masked_places(mask: Image.Image, picture: Image.Image, resolution: int, side: int) -> Tensor:
    """The codes that a mask covers, bool (side, side); white is drawn anew.

    The mask takes the picture's way through resizing and cropping, is then resized to the code grid
    (bicubic), and counts from 0.5 on (specification, section 9).

    Raises:
        ValueError: its proportions are not the picture's, or it covers no code.
    """
    mask, picture = as_rgb(as_rgb(mask).convert("L")), as_rgb(picture)
    if abs(mask.width * picture.height / (mask.height * picture.width) - 1) > _PROPORTION_SLACK:
        raise ValueError(
            f"mask of {mask.width}×{mask.height} pixels for a picture of "
            f"{picture.width}×{picture.height}: expected the same proportions"
        )
    if mask.size != picture.size:
        mask = mask.resize(picture.size, Image.Resampling.BICUBIC)
    whiteness_HW = (vq_transform(resolution)(mask)[0] + 1) / 2
    small = F.interpolate(whiteness_HW[None, None], (side, side), mode="bicubic")
    places = small[0, 0] >= 0.5
    if not places.any():
        raise ValueError("the mask covers no code of the picture: white marks what is drawn anew")
    return places
