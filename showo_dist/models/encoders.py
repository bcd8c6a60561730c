"""The frozen encoders: CLIP tower, image codes, and codes of RecA's condition image."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import islice, zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from showo_data import Sample
from showo_dist.config.model import ModelConfig, ShowoConfig
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.weights.folder import from_transformers, naming
from showo_dist.models.weights.sources import weights_digest
from showo_dist.runtime.numerics import exact_convolutions

RECORD = "encode.json"  # of the settings of encoded shards, beside them
FEATURE_LAYER = -2  # the published choice (docs/specification.md, section 7)


class ClipTower(nn.Module):
    """Images to patch features; frozen and in eval mode.

    Args:
        tower: a transformers model, for example CLIP ViT-L/14-336.
    """

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, source: str) -> "ClipTower":
        """Load a folder or hub id.

        Raises:
            ValueError: the model cannot be read, or has not all weights.
        """
        # A tower that is stored in half precision computes in fp32 too.
        with naming("model.clip_model_name", source):
            return cls(from_transformers(CLIPVisionModel, source))

    @property
    def resolution(self) -> int:
        """Side of the images that the tower takes, in pixels."""
        return self.tower.config.image_size

    @property
    def width(self) -> int:
        """Numbers of a feature, C."""
        return self.tower.config.hidden_size

    @property
    def patches(self) -> int:
        """Features of an image, S."""
        return (self.resolution // self.tower.config.patch_size) ** 2

    @torch.no_grad()
    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Features (B, S, C) of the patches: the second-to-last hidden state without the class token.

        Args:
            pixels_B3HW: images normalised by the CLIP image processor, or (RecA) the tokenizer's images in
                [-1, 1]. Images of another size are resized bilinearly.
        """
        size = (self.resolution, self.resolution)
        if pixels_B3HW.shape[-2:] != size:
            pixels_B3HW = F.interpolate(pixels_B3HW, size, mode="bilinear", align_corners=False)
        with exact_convolutions():
            output = self.tower(pixels_B3HW.to(self.tower.dtype), output_hidden_states=True)
        # Row 0 is the class token, which the published code drops.
        return output.hidden_states[FEATURE_LAYER][:, 1:]


def check_tokenizer(model: ModelConfig, vq: MAGVITv2, source: str) -> None:
    """Refuse an image tokenizer whose codes would be ids of text or special tokens, or of other places.

    Raises:
        ValueError: naming the key, and the tokenizer's ``source``.
    """
    codes, size = 2**vq.config.bits, vq.config.downsample
    if codes != (wanted := model.showo.codebook_size):
        raise ValueError(
            f"model.showo.codebook_size = {wanted}: the tokenizer at {source} has {codes} codes"
        )
    if size != (wanted := model.vq_model.downsample):
        raise ValueError(
            f"model.vq_model.downsample = {wanted}: the tokenizer at {source} makes a code of "
            f"{size}×{size} pixels"
        )


def check_tower(showo: ShowoConfig, clip: ClipTower, source: str) -> None:
    """Refuse a CLIP tower whose features have another width or number than the model's.

    Raises:
        ValueError: naming the key, and the tower's ``source``.
    """
    for key, found in (("clip_dim", clip.width), ("clip_tokens", clip.patches)):
        if found != (wanted := getattr(showo, key)):
            raise ValueError(f"model.showo.{key} = {wanted}: the tower at {source} has {found}")


def encoder_digest(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's weights, which decide the codes or features."""
    return weights_digest(encoder.state_dict().items(), "{name}")


def condition_pixels(pixels_B3HW: Tensor, down_scale: int, resize_back: bool = False) -> Tensor:
    """Make RecA's condition image: the target without its detail (docs/specification.md, section 7).

    Args:
        pixels_B3HW: target images.
        down_scale: factor by which both sides are shrunk, bilinearly.
        resize_back: enlarge the image to its former size, which gives a blurred image.
    """
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
    """Compute codes and features of the samples of a flow, in one batch.

    Samples whose codes or features were encoded ahead of training keep them.

    Args:
        vq: the image tokenizer; None when all samples have codes.
        clip: the CLIP tower; None for models without CLIP features.
        down_scale, resize_back: as in :func:`condition_pixels`.
        precision: ``model.encoder_dtype``; other than ``fp32`` it changes some codes and rounds features.
    """

    def __init__(
        self,
        vq: MAGVITv2 | None,
        clip: ClipTower | None,
        *,
        down_scale: int = 2,
        resize_back: bool = False,
        precision: str = "fp32",
    ) -> None:
        if vq is not None:
            vq.encode_in(precision)
        if clip is not None and precision == "bf16":
            clip.to(torch.bfloat16)
        self.vq, self.clip = vq, clip
        self.down_scale, self.resize_back = down_scale, resize_back

    def codes(self, samples: Seq[Sample]) -> list[Tensor]:
        """Image codes (N,) of each sample, int64 on the CPU."""
        return _filled([s.codes_N for s in samples], [s.image_3HW for s in samples], self._encode)

    def source_codes(self, samples: Seq[Sample]) -> list[Tensor]:
        """Codes (N,) of each edit's source image, int64 on the CPU."""
        return _filled(
            [s.condition_codes_G for s in samples], [s.source_3HW for s in samples], self._encode
        )

    def condition_codes(self, samples: Seq[Sample]) -> list[Tensor]:
        """Codes (G,) of each sample's condition image, int64 on the CPU."""

        def encode(pixels_B3HW: Tensor) -> Tensor:
            return self._encode(condition_pixels(pixels_B3HW, self.down_scale, self.resize_back))

        return _filled(
            [s.condition_codes_G for s in samples], [s.image_3HW for s in samples], encode
        )

    def features(self, samples: Seq[Sample]) -> list[Tensor]:
        """CLIP features (S, C) of each sample's image, fp32 on the CPU."""
        return _filled(
            [s.features_SC for s in samples], [s.image_3HW for s in samples], self._extract
        )

    def of_conversations(self, samples: Seq[Sample]) -> list[list[Tensor]]:
        """Encode the images of each sample, numbered or not.

        Returns:
            For each image CLIP features (S, C), fp32, or without a tower codes (N,), int64; on the CPU.
        """
        if self.clip is not None:
            encode, known = self._extract, [(s.features_MSC, s.features_SC) for s in samples]
        else:
            encode, known = self._encode, [(s.codes_MN, s.codes_N) for s in samples]
        own = [
            list(zip_longest(_unstacked(*k), _unstacked(s.images_M3HW, s.image_3HW)))
            for s, k in zip(samples, known, strict=True)
        ]
        every = [image for images in own for image in images]
        encoded = iter(_filled([k for k, _ in every], [p for _, p in every], encode))
        return [list(islice(encoded, len(images))) for images in own]

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        assert self.vq is not None, "images need the image tokenizer"
        device = next(self.vq.parameters()).device
        return self.vq.encode(pixels_B3HW.to(device)).cpu()

    def _extract(self, pixels_B3HW: Tensor) -> Tensor:
        assert self.clip is not None
        device = next(self.clip.parameters()).device
        return self.clip(pixels_B3HW.to(device)).float().cpu()


def _unstacked(several: Tensor | None, one: Tensor | None) -> list[Tensor]:
    """The tensors of numbered images, or of the only one; none if there is neither."""
    return list(several) if several is not None else [one] if one is not None else []


def _filled(
    known: list[Tensor | None], pixels: list[Tensor | None], encode: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Fill the gaps of ``known`` by encoding the images, all in one batch, which costs least."""
    images = [p for p, k in zip(pixels, known, strict=True) if k is None]
    assert all(p is not None for p in images), "a sample has an image or its encoding"
    fresh = iter(encode(torch.stack([p for p in images if p is not None])) if images else ())
    # Encoded samples and images may alternate in one batch.
    return [next(fresh) if k is None else k for k in known]
