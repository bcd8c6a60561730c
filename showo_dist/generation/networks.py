"""Load a trained model with its tokenizers, and convert images and texts to tokens and back."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from showo_data import clip_transform
from showo_data.images import to_images
from showo_dist.config import TrainConfig, load_file, wants_system_prompt
from showo_dist.generation.conversation import (
    Edit,
    Part,
    Turn,
    flatten,
    flatten_by_template,
    image_prompt,
)
from showo_dist.generation.edits import as_rgb, pixels
from showo_dist.generation.sampling import SamplingOptions, sampling_options
from showo_dist.models.backbone import head_width
from showo_dist.models.encoders import ClipTower, check_tokenizer, check_tower, condition_pixels
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.folder import CONFIG_NAME, local_folder
from showo_dist.models.weights.pretrained import load_showo, read_config, read_settings
from showo_dist.runtime.numerics import uses_bf16
from showo_dist.runtime.ranks import default_device
from showo_dist.sequences import Sequence as TokenSequence
from showo_dist.sequences import TextEncoder, Vocabulary
from showo_dist.sequences.builders import Piece, answer_prompt, edit_prompt
from showo_dist.sequences.text import SYSTEM_PROMPT
from showo_kernels import select_backend

TRAINING_CONFIG = "config.yaml"
# Rounds and guidance of the released models by the side of their images (docs/specification.md, section 9).
_RELEASED_SAMPLING = {256: (16, 1.75), 512: (50, 5.0)}


@dataclass(frozen=True)
class Networks:
    """A model and the encoders that generation and understanding need.

    Input images may have any size and mode. They are turned as EXIF says, then resized and cropped as in
    training.

    Attributes:
        model: Show-o in eval mode.
        vq: the image tokenizer, on the model's device.
        text: the text tokenizer.
        vocabulary: ids of the model.
        resolution: side of the images, in pixels.
        budget: most tokens of a prompt, task token and bos included; longer prompts are cut.
        options: default sampler settings (the config's rounds and guidance).
        clip: the CLIP tower of models that read images as CLIP features, else None.
        system_prompt: text before the questions.
        question_style: text around questions, a key of
            :data:`~showo_dist.generation.conversation.QUESTION_STYLES`; without effect
            where ``text`` uses the tokenizer's chat template.
        down_scale, resize_back: how RecA's condition image is made, for models without CLIP.
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
        """Load a training checkpoint, an export, a released folder or a hub id, and the tokenizers it needs.

        Args:
            checkpoint: the folder or id.
            config: None reads the checkpoint's ``config.yaml``; a released folder has none and gets the
                released settings for its image size.
            device: default: the GPU if there is one, else the CPU.
            vq_model: image tokenizer instead of the config's.
            tokenizer: text tokenizer instead of the config's.
            clip_model: CLIP tower instead of the config's.
            precision: ``auto`` (bf16 on a GPU, fp32 on a CPU), ``bf16`` or ``fp32``; the image tokenizer
                and the CLIP tower stay in fp32.

        Raises:
            ValueError: the folder or a tokenizer cannot be read; the message names it.
            FileNotFoundError: there is no image tokenizer at the given place.
        """
        config = config or read_model_config(checkpoint)
        where = torch.device(device) if device else default_device()
        showo, vq = config.model.showo, config.model.vq_model
        # As the model was trained, whatever the config of the tool has.
        recorded = read_settings(local_folder(checkpoint))
        chat = config.dataset.chat_template or recorded.get("dataset.chat_template") is True
        source = tokenizer or _text_tokenizer(config, checkpoint)
        text = TextEncoder(source, showo.llm_vocab_size, chat)
        model = _load_model(checkpoint, config, where, precision)
        vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
        if vocabulary.size != model.config.vocab_size:
            raise ValueError(
                f"{checkpoint} has a table of {model.config.vocab_size} tokens, the config's sizes "
                f"(model.showo) make {vocabulary.size}"
            )
        vq_source = vq_model or vq.pretrained_model_path or vq.vq_model_name
        image_tokenizer = MAGVITv2.from_pretrained(vq_source, where)
        check_tokenizer(config.model, image_tokenizer, vq_source)
        return cls(
            model=model,
            vq=image_tokenizer,
            text=text,
            vocabulary=vocabulary,
            resolution=config.dataset.preprocessing.resolution,
            budget=config.dataset.preprocessing.max_seq_length,
            options=sampling_options(config),
            clip=_load_clip(config, clip_model, where),
            system_prompt=SYSTEM_PROMPT if _asks_with_system_prompt(config) else "",
            question_style=_question_style(config),
            down_scale=config.training.down_scale,
            resize_back=config.training.resize_back,
        )

    def reading(self) -> dict[str, Any]:
        """How texts and images are laid out as tokens, for a record of what the weights were asked."""
        tokenizer = self.text.tokenizer.backend_tokenizer.to_str()
        template = self.text.template
        return {
            "text_tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
            "chat_template": template is not None and self.text.tokenizer.chat_template,
            "question_style": self.question_style,
            "system_prompt": self.system_prompt,
            "budget": self.budget,
            "resolution": self.resolution,
        }

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def side(self) -> int:
        """Rows and columns of an image's codes."""
        return self.resolution // self.vq.config.downsample

    @property
    def tokens(self) -> int:
        """Image tokens per image, N."""
        return self.side**2

    def encode(self, images: list[Image.Image]) -> Tensor:
        """Return image codes (B, N) on the model's device."""
        return self.vq.encode(pixels(images, self.resolution).to(self.device))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Return the images of codes (B, N), or of code grids (B, h, w) of any shape."""
        return to_images(self.vq.decode(codes))

    def encode_for_questions(self, images: list[Image.Image]) -> list[Piece]:
        """Encode each image for questions: image codes (N,), or CLIP features (S, C)."""
        if self.clip is None:
            return list(self.encode(images).cpu())
        transform = clip_transform(self.clip.resolution)
        pixels_B3HW = torch.stack([transform(as_rgb(image)) for image in images])
        return list(self.clip(pixels_B3HW.to(self.device)).float().cpu())

    def encode_as_conditions(self, images: list[Image.Image]) -> list[Piece]:
        """Encode each image as a condition of generation, as RecA trains it."""
        pixels_B3HW = pixels(images, self.resolution).to(self.device)
        if self.clip is not None:
            return list(self.clip(pixels_B3HW).float().cpu())
        small = condition_pixels(pixels_B3HW, self.down_scale, self.resize_back)
        return list(self.vq.encode(small).cpu())

    def question_sequences(self, conversations: Sequence[Sequence[Turn]]) -> list[TokenSequence]:
        """Make sequences of conversations that end with a question, up to where the answer begins."""
        pieces = self._pieces(list(map(self._flat, conversations)), self.encode_for_questions)
        system = self.text.encode(self.system_prompt) if self.system_prompt else []
        bos = self.question_style == "demo" and self.clip is None and self.text.template is None
        return [answer_prompt(row, self.vocabulary, system, bos=bos) for row in pieces]

    def _flat(self, turns: Sequence[Turn]) -> list[Part]:
        if self.text.template:
            return flatten_by_template(turns, self.text.template)
        return flatten(turns, self.question_style, self.text.end_of_text)

    def image_sequences(self, prompts: Sequence[Sequence[Part]]) -> list[TokenSequence]:
        """Make sequences of texts and images that end with an image to generate."""
        blank_N = torch.full((self.tokens,), self.vocabulary.codebook)
        return [
            image_prompt(row, blank_N, self.budget, self.vocabulary)
            for row in self._pieces(prompts, self.encode_as_conditions)
        ]

    def edit_sequences(
        self, edits: Sequence[Edit]
    ) -> tuple[list[TokenSequence], list[TokenSequence]]:
        """Make sequences of edits that end with an image to generate, with their instructions and without."""
        blank_N = torch.full((self.tokens,), self.vocabulary.codebook)
        sources_BN = self.encode([edit.image for edit in edits]).cpu()
        texts = [self.text.encode(edit.instruction) for edit in edits]

        def sequences(texts: list[list[int]]) -> list[TokenSequence]:
            return [
                edit_prompt(text, source_N, blank_N, self.budget, self.vocabulary)
                for text, source_N in zip(texts, sources_BN, strict=True)
            ]

        return sequences(texts), sequences([[] for _ in texts])

    def _pieces(
        self,
        rows: Sequence[Sequence[Part]],
        encode: Callable[[list[Image.Image]], list[Piece]],
    ) -> list[list[Piece]]:
        """Tokenize the texts, and encode all images of all rows in one batch."""
        images = [part for row in rows for part in row if isinstance(part, Image.Image)]
        encoded = iter(encode(images) if images else [])
        return [
            [self.text.encode(part) if isinstance(part, str) else next(encoded) for part in row]
            for row in rows
        ]


def read_model_config(source: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read the config beside a model's weights, or derive one from a released ``config.json``.

    Args:
        source: a training checkpoint, an export, a released folder, or a hub id.
        overrides: ``key=value`` settings that take precedence.

    Raises:
        ValueError: neither file exists, or one cannot be read; the message names it.
        FileNotFoundError: no such folder and no such hub repository.
    """
    path = Path(source) / TRAINING_CONFIG
    if path.is_file():
        return load_file(path, TrainConfig, overrides or [], check=False, foreign=True)
    if Path(source).is_absolute() and not (Path(source) / CONFIG_NAME).is_file():
        raise ValueError(
            f"{path}: missing; expected a checkpoint of a training run, or a released folder with "
            f"{CONFIG_NAME}"
        )
    return _released_config(local_folder(source), overrides or [])


def _released_config(folder: Path, overrides: list[str]) -> TrainConfig:
    """Return the settings of the released demo configs for a model, with changes."""
    showo = read_config(folder)
    recorded = [f"{key}={value}" for key, value in read_settings(folder).items()]
    asked = load_file(None, TrainConfig, [*recorded, *overrides], check=False)
    side = isqrt(showo.num_vq_tokens) * asked.model.vq_model.downsample
    steps, guidance = _RELEASED_SAMPLING.get(side, _RELEASED_SAMPLING[256])
    own = {
        "dataset.preprocessing.resolution": side,
        "dataset.params.resolution": side,
        "training.generation_timesteps": steps,
        "training.guidance_scale": guidance,
    }
    layers = [*recorded, *(f"{key}={value}" for key, value in own.items()), *overrides]
    config = load_file(None, TrainConfig, layers, check=False)
    named = config.model.showo.tokenizer_path
    config.model.showo = replace(showo, tokenizer_path=named or showo.tokenizer_path)
    return config


def _load_model(
    source: str | Path, config: TrainConfig, device: torch.device, precision: str
) -> ShowO:
    """Load Show-o in eval mode, with the attention backend that the config names if it can run here."""
    half = precision == "bf16" or (device.type == "cuda" and uses_bf16(precision, device))
    dtype = torch.bfloat16 if half else torch.float32
    model = load_showo(source, attention="auto", device=device).eval()
    width = head_width(model.config)
    try:
        backend, _ = select_backend(config.model.attention, device, dtype, width)
    except ValueError as obstacle:  # the model was trained on another kind of device
        backend, _ = select_backend("auto", device, dtype, width)
        print(f"model.attention: {backend} instead ({obstacle})", file=sys.stderr)
    for parameter in model.parameters():  # not the rotary frequencies, which must stay fp32
        parameter.data = parameter.data.to(dtype)
    model.attention = backend
    return model


def _load_clip(config: TrainConfig, source: str | None, device: torch.device) -> ClipTower | None:
    """Load the CLIP tower of a model that reads images as CLIP features; None for other models."""
    if not config.model.showo.w_clip_vit:
        return None
    source = source or config.model.clip_model_name
    clip = ClipTower.from_pretrained(source).to(device)
    check_tower(config.model.showo, clip, source)
    return clip


def _text_tokenizer(config: TrainConfig, source: str | Path) -> str:
    """Return the path of the text tokenizer.

    Raises:
        ValueError: the config names none.
    """
    path = config.text_tokenizer
    if path is None:
        raise ValueError(f"{source}: its config names no text tokenizer; name one")
    return path


def _asks_with_system_prompt(config: TrainConfig) -> bool:
    """As in training; but the published demo configs say captioning of CLIP models that were tuned."""
    demo = config.model.showo.w_clip_vit and config.dataset.und_type == "captioning"
    return demo or wants_system_prompt(config)


def _question_style(config: TrainConfig) -> str:
    """Return the style of the model's training data: LLaVA's, or the demo's for captions alone."""
    captions_alone = config.dataset.und_type == "captioning" and not config.model.showo.w_clip_vit
    return "demo" if captions_alone else "llava"
