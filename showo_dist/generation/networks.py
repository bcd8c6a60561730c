"""A trained model with its tokenizers, and the ways between images, texts and tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from showo_data import clip_transform
from showo_dist.config import TrainConfig
from showo_dist.generation.conversation import (
    Part,
    Piece,
    Turn,
    answer_prompt,
    flatten,
    image_prompt,
)
from showo_dist.generation.edits import as_rgb, pixels
from showo_dist.generation.loading import (
    load_clip,
    load_model,
    question_style,
    read_model_config,
    sampling_options,
    text_tokenizer,
)
from showo_dist.generation.sampling import SamplingOptions
from showo_dist.models.clip import ClipTower
from showo_dist.models.encoders import condition_pixels
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.images import to_images
from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence as TokenSequence
from showo_dist.sequences import TextEncoder, Vocabulary
from showo_dist.sequences.text import SYSTEM_PROMPT


@dataclass(frozen=True)
class Networks:
    """Everything that generation and understanding need.

    Images that come in may be of any size and mode; they are turned as EXIF says, resized and cropped as
    in training. Images that are generated depend on the seed and their index alone, never on the batch.

    Attributes:
        model: Show-o; put into eval mode by the caller.
        vq: the image tokenizer, on the model's device.
        text: the text tokenizer.
        vocabulary: ids of the model.
        resolution: side in pixels of the images.
        budget: text budget M of a prompt, in tokens; longer prompts are cut there.
        options: how the model was meant to generate (the config's rounds and guidance).
        clip: the CLIP tower of models that see images as CLIP features.
        system_prompt: stands before what a CLIP model is asked.
        question_style: how questions are put, one of
            :data:`~showo_dist.generation.conversation.QUESTION_STYLES`.
        down_scale, resize_back: RecA's condition image of models without CLIP.
    """

    model: ShowO
    vq: MAGVITv2
    text: TextEncoder
    vocabulary: Vocabulary
    resolution: int
    budget: int
    options: SamplingOptions = field(default_factory=SamplingOptions)
    clip: ClipTower | None = None
    system_prompt: str = ""
    question_style: str = "llava"
    down_scale: int = 2
    resize_back: bool = False

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        config: TrainConfig | None = None,
        device: torch.device | str | None = None,
        vq_model: str | None = None,
        tokenizer: str | None = None,
        clip_model: str | None = None,
        precision: str = "auto",
    ) -> Self:
        """Read a checkpoint or export of ours, a released folder, or a hub id, and the tokenizers it needs.

        Args:
            checkpoint: the folder or id.
            config: None reads the ``config.yaml`` of a run's checkpoint; a released folder has none and gets
                the released settings of its size.
            device: default is the GPU if there is one, else the CPU.
            vq_model: image tokenizer instead of the config's.
            tokenizer: text tokenizer instead of the config's.
            clip_model: CLIP tower instead of the config's.
            precision: ``auto`` (bf16 on a GPU, fp32 on a CPU), ``bf16`` or ``fp32``; the image tokenizer
                and the CLIP tower stay fp32.

        Raises:
            ValueError: the folder or a tokenizer cannot be read; the message names it.
            FileNotFoundError: no image tokenizer there.
        """
        config = config or read_model_config(checkpoint)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        showo, vq = config.model.showo, config.model.vq_model
        text = TextEncoder(tokenizer or text_tokenizer(config, checkpoint), showo.llm_vocab_size)
        model = load_model(checkpoint, config, where, precision)
        vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
        if vocabulary.size != model.config.vocab_size:
            raise ValueError(
                f"{checkpoint} has a table of {model.config.vocab_size} tokens, the config's sizes "
                f"(model.showo) make {vocabulary.size}"
            )
        vq_source = vq_model or vq.pretrained_model_path or vq.vq_model_name
        pretraining = config.dataset.und_type == "llava_pretrain"
        return cls(
            model=model,
            vq=MAGVITv2.from_pretrained(vq_source, where),
            text=text,
            vocabulary=vocabulary,
            resolution=config.dataset.preprocessing.resolution,
            budget=config.dataset.preprocessing.max_seq_length,
            options=sampling_options(config),
            clip=load_clip(config, clip_model, where),
            system_prompt=SYSTEM_PROMPT if showo.w_clip_vit and not pretraining else "",
            question_style=question_style(config),
            down_scale=config.training.down_scale,
            resize_back=config.training.resize_back,
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def side(self) -> int:
        """Codes along one side of an image."""
        return self.resolution // self.vq.config.downsample

    @property
    def tokens(self) -> int:
        """Image tokens per image, N."""
        return self.side**2

    def encode(self, images: list[Image.Image]) -> Tensor:
        """Image codes (B, N) on the model's device."""
        return self.vq.encode(pixels(images, self.resolution).to(self.device))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Images of codes (B, N), or (B, h, w) of any shape."""
        return to_images(self.vq.decode(codes))

    def understood(self, images: list[Image.Image]) -> list[Piece]:
        """Each image as the model reads it when asked: image codes, or CLIP features."""
        if self.clip is None:
            return list(self.encode(images).cpu())
        transform = clip_transform(self.clip.resolution)
        pixels_B3HW = torch.stack([transform(as_rgb(image)) for image in images])
        return list(self.clip(pixels_B3HW.to(self.device)).float().cpu())

    def conditions(self, images: list[Image.Image]) -> list[Piece]:
        """Each image as the model reads it before it generates another, as RecA trains it."""
        pixels_B3HW = pixels(images, self.resolution).to(self.device)
        if self.clip is not None:
            return list(self.clip(pixels_B3HW).float().cpu())
        small = condition_pixels(pixels_B3HW, self.down_scale, self.resize_back)
        return list(self.vq.encode(small).cpu())

    def question_sequences(self, conversations: Sequence[Sequence[Turn]]) -> list[TokenSequence]:
        """Conversations that end with a question, up to where the answer begins."""
        rows = [flatten(turns, self.question_style) for turns in conversations]
        known = self._pieces(rows, self.understood)
        system = self.text.encode(self.system_prompt) if self.system_prompt else []
        bos = self.question_style == "demo" and self.clip is None
        return [answer_prompt(pieces, self.vocabulary, system, bos=bos) for pieces in known]

    def image_sequences(self, prompts: Sequence[Sequence[Part]]) -> list[TokenSequence]:
        """Texts and images, followed by an image to generate."""
        blank_N = torch.full((self.tokens,), self.vocabulary.codebook)
        return [
            image_prompt(pieces, blank_N, self.budget, self.vocabulary)
            for pieces in self._pieces(prompts, self.conditions)
        ]

    def _pieces(
        self,
        rows: Sequence[Sequence[Part]],
        see: Callable[[list[Image.Image]], list[Piece]],
    ) -> list[list[Piece]]:
        """Texts to ids; all images of all rows through ``see`` at once."""
        images = [part for row in rows for part in row if isinstance(part, Image.Image)]
        seen = iter(see(images) if images else [])
        return [
            [self.text.encode(part) if isinstance(part, str) else next(seen) for part in row]
            for row in rows
        ]
