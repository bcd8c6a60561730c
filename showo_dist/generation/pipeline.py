"""A trained model with its tokenizers: texts to pictures, questions about pictures to answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from showo_data import vq_transform
from showo_dist.config import TrainConfig, load_file
from showo_dist.generation.answer import answer
from showo_dist.generation.paint import Painter, PaintOptions, paint
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.pictures import to_images
from showo_dist.models.pretrained import load_showo
from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, TextEncoder, Vocabulary
from showo_dist.sequences.builders import mmu_llava
from showo_dist.sequences.masking import mask_schedule

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pipeline:
    """Everything that generation and understanding need.

    Attributes:
        model: Show-o; put into eval mode by the caller.
        vq: the image tokenizer, on the model's device.
        text: the text tokenizer.
        vocabulary: ids of the model.
        resolution: side in pixels of the pictures.
        budget: text budget M of a prompt, in tokens.
        options: how the model was meant to paint (the config's rounds and guidance).
    """

    model: ShowO
    vq: MAGVITv2
    text: TextEncoder
    vocabulary: Vocabulary
    resolution: int
    budget: int
    options: PaintOptions = field(default_factory=PaintOptions)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: torch.device | str | None = None,
        vq_model: str | None = None,
        tokenizer: str | None = None,
    ) -> Self:
        """Read a checkpoint folder of ours: weights, ``config.yaml`` and the tokenizers it names.

        Args:
            checkpoint: the folder.
            device: default is the GPU if there is one, else the CPU.
            vq_model: image tokenizer instead of ``model.vq_model.vq_model_name``.
            tokenizer: text tokenizer instead of ``model.showo.tokenizer_path``.

        Raises:
            ValueError: the folder or a tokenizer cannot be read; the message names it.
            FileNotFoundError: no image tokenizer there.
        """
        config = _read_config(Path(checkpoint))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        showo = config.model.showo
        text = TextEncoder(tokenizer or _text_tokenizer(config, checkpoint), showo.llm_vocab_size)
        model = load_showo(checkpoint, attention=config.model.attention, device=device)
        return cls(
            model=model.eval(),
            vq=MAGVITv2.from_pretrained(vq_model or config.model.vq_model.vq_model_name, device),
            text=text,
            vocabulary=text.vocabulary(showo.llm_vocab_size, showo.codebook_size),
            resolution=config.dataset.preprocessing.resolution,
            budget=config.dataset.preprocessing.max_seq_length,
            options=paint_options(config),
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def tokens(self) -> int:
        """Image tokens per picture, N."""
        return (self.resolution // self.vq.config.downsample) ** 2

    def paint_texts(
        self,
        texts: list[str],
        options: PaintOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """One picture per text.

        Args:
            texts: the prompts.
            options: None takes the pipeline's own.
            seed: with the picture's index it decides all random numbers.
            batch: pictures painted together.
            first_index: index of the first text, for callers that paint a list part by part.
        """
        pictures: list[Image.Image] = []
        for start, part in _batches(texts, batch):
            painter = Painter(
                self.model,
                self.vocabulary,
                [self.text.encode(text) for text in part],
                budget=self.budget,
                options=options or self.options,
                tokens=self.tokens,
            )
            first = first_index + start
            generators = [_generator(seed, first + n, self.device) for n in range(len(part))]
            codes_BN = paint(painter, generators)
            pictures += self._decode(codes_BN)
        return pictures

    def ask(
        self,
        images: list[Image.Image],
        questions: list[str],
        max_new_tokens: int = 32,
        batch: int = 32,
    ) -> list[str]:
        """The most likely answer to one question about each picture.

        Args:
            images: any size; resized and cropped as in training.
            questions: one per picture.
            max_new_tokens: longest answer.
            batch: pictures per forward pass.

        Raises:
            ValueError: the model sees pictures as CLIP features.
        """
        if self.model.feature_width:
            raise ValueError("questions to a model with CLIP features need its CLIP tower")
        answers: list[str] = []
        pairs = list(zip(images, questions, strict=True))
        for _, part in _batches(pairs, batch):
            codes_BN = self._encode([image for image, _ in part]).cpu()
            prompts = [
                self._question(question, codes_N)
                for (_, question), codes_N in zip(part, codes_BN, strict=True)
            ]
            found = answer(self.model, self.vocabulary, prompts, max_new_tokens=max_new_tokens)
            answers += [self.text.decode(ids).strip() for ids in found]
        return answers

    def reconstruct(self, images: list[Image.Image], batch: int = 32) -> list[Image.Image]:
        """What the image tokenizer alone makes of the pictures."""
        parts = (self._decode(self._encode(part)) for _, part in _batches(images, batch))
        return [picture for part in parts for picture in part]

    def _question(self, question: str, codes_N: Tensor) -> Sequence:
        """``mmu soi IMAGE eoi USER: question ASSISTANT:``, whole, whatever the text budget."""
        ids, supervised = self.text.conversation([("human", question)])
        return mmu_llava(ids, supervised, codes_N, len(ids), self.vocabulary)

    def _encode(self, images: list[Image.Image]) -> Tensor:
        to_pixels = vq_transform(self.resolution)
        pixels_B3HW = torch.stack([to_pixels(image.convert("RGB")) for image in images])
        return self.vq.encode(pixels_B3HW.to(self.device))

    @torch.no_grad()
    def _decode(self, codes_BN: Tensor) -> list[Image.Image]:
        return to_images(self.vq.decode(codes_BN))


def paint_options(config: TrainConfig) -> PaintOptions:
    """How ``training.*`` says that pictures are painted."""
    training = config.training
    return PaintOptions(
        steps=training.generation_timesteps,
        guidance=training.guidance_scale,
        temperature=training.generation_temperature,
        schedule=mask_schedule(training.mask_schedule),
    )


def _read_config(folder: Path) -> TrainConfig:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: missing; expected a checkpoint folder of a training run")
    return load_file(path, TrainConfig, check=False)


def _text_tokenizer(config: TrainConfig, checkpoint: str | Path) -> str:
    path = config.text_tokenizer
    if path is None:
        raise ValueError(f"{checkpoint}: its config names no text tokenizer; name one")
    return path


def _generator(seed: int, index: int, device: torch.device) -> torch.Generator:
    (state,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))


def _batches(items: list[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    """(index of the first, items) of each batch."""
    for start in range(0, len(items), size):
        yield start, items[start : start + size]
