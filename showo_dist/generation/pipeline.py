"""What a trained model can do: generate, edit, answer, rebuild.

Talking with a model in texts and images: it answers, or generates the next image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from showo_dist.generation.answer import answer
from showo_dist.generation.conversation import Part, Turn, assistant, user
from showo_dist.generation.edits import check_direction, extended, growth, masked_places
from showo_dist.generation.loading import sampling_options
from showo_dist.generation.networks import Networks
from showo_dist.generation.sampling import ImageSampler, SamplingOptions, sample_codes
from showo_dist.sequences import Sequence as TokenSequence
from showo_dist.sequences.text import description_prompts, question_prompt

__all__ = ["Pipeline", "sampling_options"]

Item = TypeVar("Item")
Prompt = list[int] | TokenSequence


@dataclass(frozen=True)
class Pipeline(Networks):
    """A model at work; see :class:`Networks` for what it holds and :meth:`Networks.load`.

    Arguments that all generating methods share: ``options`` (None takes the pipeline's own), ``seed`` (with
    the image's index it decides all random numbers), ``batch`` (images generated together) and
    ``first_index`` (index of the first image, for callers that go through a list part by part).
    """

    def generate(
        self,
        texts: Sequence[str],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """One image per text. An empty text is no condition; a long one is cut at the budget."""
        results: list[Image.Image] = []
        for start, part in _batches(texts, batch):
            prompts: list[Prompt] = [self.text.encode(text) for text in part]
            generators = self._generators(seed, first_index + start, len(part))
            results += self.decode(self._sampled_codes(prompts, generators, options))
        return results

    def generate_from_parts(
        self,
        prompts: Sequence[Sequence[Part]],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """One image per prompt of texts and images in any order.

        One image and one text is what RecA trains; longer mixtures no published model was trained for.
        Without ``options`` images as CLIP features are generated from without guidance.

        Raises:
            ValueError: guidance asked for with images as CLIP features.
        """
        if options is None and self.clip is not None and _any_image(prompts):
            options = replace(self.options, guidance=0.0)
        results: list[Image.Image] = []
        for start, part in _batches(prompts, batch):
            generators = self._generators(seed, first_index + start, len(part))
            results += self.decode(
                self._sampled_codes(self.image_sequences(part), generators, options)
            )
        return results

    def reconstruct(
        self,
        images: Sequence[Image.Image],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """RecA's own view: each image regenerated from the model's understanding of it.

        The request for a description is drawn from the training's list; without ``options`` there is no
        guidance, as in training.
        """
        requests = description_prompts()
        drawn = [
            requests[int(_random(seed, first_index + number).integers(len(requests)))]
            for number in range(len(images))
        ]
        prompts: list[list[Part]] = [
            [i, question_prompt(text)] for i, text in zip(images, drawn, strict=True)
        ]
        options = options or replace(self.options, guidance=0.0)
        return self.generate_from_parts(prompts, options, seed, batch, first_index)

    def inpaint(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Image.Image],
        texts: Sequence[str],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """Each image with what its mask covers in white regenerated; every other code is kept.

        Raises:
            ValueError: a mask has other proportions than its image, or covers nothing.
        """
        places = [
            masked_places(mask, image, self.resolution, self.side).flatten()
            for image, mask in zip(images, masks, strict=True)
        ]
        results: list[Image.Image] = []
        for start, part in _batches(list(zip(images, places, texts, strict=True)), batch):
            codes_BN = self.encode([image for image, _, _ in part])
            covered_BN = torch.stack([covered_N for _, covered_N, _ in part]).to(self.device)
            codes_BN = codes_BN.masked_fill(covered_BN, self.vocabulary.codebook)
            prompts: list[Prompt] = [self.text.encode(text) for _, _, text in part]
            generators = self._generators(seed, first_index + start, len(part))
            results += self.decode(self._sampled_codes(prompts, generators, options, codes_BN))
        return results

    def extrapolate(
        self,
        images: Sequence[Image.Image],
        directions: Sequence[str],
        texts: Sequence[str],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
        offset: int = 0,
    ) -> list[Image.Image]:
        """Each image carried on beyond its edges, one step per direction; every code of it is kept.

        Args:
            images: any size; the square that the model sees of them is carried on.
            directions: ``left``, ``right``, ``up`` or ``down``, one per step.
            texts: one per step, or a single one for all.
            options, seed, batch, first_index: as everywhere.
            offset: code columns (rows) that a step adds beyond half an image.

        Raises:
            ValueError: an unknown direction, texts that do not match the steps, or an offset too large.
        """
        if len(texts) not in (1, len(directions)):
            raise ValueError(f"{len(directions)} directions and {len(texts)} texts: one per step")
        texts = list(texts) * len(directions) if len(texts) == 1 else texts
        results: list[Image.Image] = []
        for start, part in _batches(images, batch):
            generators = self._generators(seed, first_index + start, len(part))
            grid_Bhw = self.encode(list(part)).unflatten(1, (self.side, self.side))
            for direction, text in zip(directions, texts, strict=True):
                grid_Bhw = self._extended(grid_Bhw, direction, text, options, generators, offset)
            results += self.decode(grid_Bhw)
        return results

    def ask(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        max_new_tokens: int = 32,
        batch: int = 32,
        *,
        top_k: int | None = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """The answer to one question about each image; arguments as in :meth:`reply`."""
        conversations = [[user(i, q)] for i, q in zip(images, questions, strict=True)]
        return self.reply(
            conversations, max_new_tokens, batch, top_k=top_k, temperature=temperature, seed=seed
        )

    def reply(
        self,
        conversations: Sequence[Sequence[Turn]],
        max_new_tokens: int = 32,
        batch: int = 32,
        *,
        top_k: int | None = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """The model's next words in each conversation.

        Conversations may hold any number of images in any place; one, at the start, is what published
        models were trained for.

        Args:
            conversations: turns that end with one of the user's.
            max_new_tokens: longest answer.
            batch: conversations per forward pass.
            top_k: 1 is the most likely token; None draws among all.
            temperature: of the drawing, above 0.
            seed: of the drawing, with the index of the batch.
        """
        answers: list[str] = []
        for start, part in _batches(conversations, batch):
            found = answer(
                self.model,
                self.vocabulary,
                self.question_sequences(part),
                max_new_tokens=max_new_tokens,
                top_k=top_k,
                temperature=temperature,
                generator=self._generators(seed, start, 1)[0],
            )
            answers += [self.text.decode(ids).strip() for ids in found]
        return answers

    def tokenizer_roundtrip(
        self, images: Sequence[Image.Image], batch: int = 32
    ) -> list[Image.Image]:
        """What the image tokenizer alone makes of the images."""
        parts = (self.decode(self.encode(list(part))) for _, part in _batches(images, batch))
        return [image for part in parts for image in part]

    def _sampled_codes(
        self,
        prompts: Sequence[Prompt],
        generators: list[torch.Generator],
        options: SamplingOptions | None,
        codes_BN: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, N); ``codes_BN`` says which are given."""
        options = options or self.options
        conditioned = any(
            isinstance(p, TokenSequence) and p.features_SC is not None for p in prompts
        )
        if conditioned and options.guidance > 0:
            raise ValueError(
                f"guidance {options.guidance:g} with images as CLIP features: only 0 is possible"
            )
        sampler = ImageSampler(
            self.model,
            self.vocabulary,
            prompts,
            budget=self.budget,
            options=options,
            tokens=self.tokens,
            codes_BN=codes_BN,
        )
        return sample_codes(sampler, generators)

    def _extended(
        self,
        grid_Bhw: Tensor,
        direction: str,
        text: str,
        options: SamplingOptions | None,
        generators: list[torch.Generator],
        offset: int,
    ) -> Tensor:
        prompts: list[Prompt] = [self.text.encode(text)] * len(grid_Bhw)

        def fill_window(window_Bhw: Tensor) -> Tensor:
            codes_BN = self._sampled_codes(prompts, generators, options, window_Bhw.flatten(1))
            return codes_BN.view_as(window_Bhw)

        return extended(
            grid_Bhw,
            check_direction(direction),
            self.side,
            growth(self.side, offset),
            self.vocabulary.codebook,
            fill_window,
        )

    def _generators(self, seed: int, first: int, count: int) -> list[torch.Generator]:
        return [_generator(seed, first + number, self.device) for number in range(count)]


def _any_image(prompts: Sequence[Sequence[Part]]) -> bool:
    return any(isinstance(part, Image.Image) for prompt in prompts for part in prompt)


def _random(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def _generator(seed: int, index: int, device: torch.device) -> torch.Generator:
    (state,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))


def _batches(items: Sequence[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    """(index of the first, items) of each batch."""
    for start in range(0, len(items), size):
        yield start, list(items[start : start + size])


class Conversation:
    """Turns of a user and a model; everything said so far is read anew for each of the model's turns.

    Published models were trained on one image and questions about it, and on generation from a text or from
    one image and a text. All else works, and is what the model makes of it.

    Args:
        pipeline: the model.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.turns: list[Turn] = []

    def ask(self, *parts: Part, max_new_tokens: int = 100, top_k: int | None = 1) -> str:
        """Say something, in texts and images, and get an answer in words."""
        self.turns.append(user(*parts))
        (words,) = self.pipeline.reply([self.turns], max_new_tokens, top_k=top_k)
        self.turns.append(assistant(words))
        return words

    def sample_codes(
        self, *parts: Part, options: SamplingOptions | None = None, seed: int = 0
    ) -> Image.Image:
        """Say something, in texts and images, and get an image.

        The model reads all texts and images so far in their order, without the marks of who said them. A
        model that reads images as CLIP features generates without guidance once there is an image.

        Raises:
            ValueError: ``options`` ask for guidance where there is none.
        """
        self.turns.append(user(*parts))
        said = [part for turn in self.turns for part in turn.parts]
        (image,) = self.pipeline.generate_from_parts(
            [said], options, seed, first_index=len(self.turns)
        )
        self.turns.append(assistant(image))
        return image
