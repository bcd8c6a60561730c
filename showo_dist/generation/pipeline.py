"""The operations of a trained model: generate, edit and reconstruct images, answer questions, converse."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from showo_dist.generation.answer import answer
from showo_dist.generation.conversation import Edit, Part, Turn, assistant, user
from showo_dist.generation.edits import check_direction, extend_grid, growth, masked_places
from showo_dist.generation.networks import Networks
from showo_dist.generation.sampling import ImageSampler, SamplingOptions, sample_codes
from showo_dist.runtime.numerics import image_generator
from showo_dist.sequences import Sequence as TokenSequence
from showo_dist.sequences.text import description_prompts, question_prompt

Item = TypeVar("Item")
Prompt = str | TokenSequence | Edit


@dataclass(frozen=True)
class Pipeline(Networks):
    """A trained model, ready to use; create it with :meth:`Networks.load`.

    The methods that generate images share these arguments: ``options`` (None takes the pipeline's own),
    ``seed`` (with the image's index it decides all random numbers), ``batch`` (images generated together) and
    ``first_index`` (index of the first image, for callers that pass a long list in parts). An image does not
    depend on the rest of its batch.
    """

    def generate(
        self,
        texts: Sequence[str],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """Generate one image per text.

        An empty text generates without a condition; a text beyond the budget is cut.
        """
        results: list[Image.Image] = []
        for start, part in batches(texts, batch):
            results += self.decode(self._sampled_codes(part, options, seed, first_index + start))
        return results

    def generate_from_parts(
        self,
        prompts: Sequence[Sequence[Part]],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """Generate one image per prompt of texts and images in any order.

        RecA trains one image and one text; no published model was trained for longer mixtures. Without
        ``options``, a model that reads images as CLIP features generates without guidance from prompts that
        hold an image.

        Raises:
            ValueError: guidance is asked for with images as CLIP features.
        """
        results: list[Image.Image] = []
        for start, part in batches(prompts, batch):
            sequences = self.image_sequences(part)
            generators = self._generators(seed, first_index + start, len(part))
            codes_BN = torch.empty(len(part), self.tokens, dtype=torch.long, device=self.device)
            # An image behind CLIP features has another layout than one behind texts alone.
            for rows in _by_layout(sequences):
                chosen = options
                if options is None and sequences[rows[0]].features_SC is not None:
                    chosen = replace(self.options, guidance=0.0)
                sampler = self.sampler([sequences[row] for row in rows], chosen)
                codes_BN[rows] = sample_codes(sampler, [generators[row] for row in rows])
            results += self.decode(codes_BN)
        return results

    def reconstruct(
        self,
        images: Sequence[Image.Image],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """Regenerate each image from the model's understanding of it, as RecA trains it.

        The request for a description is sampled from the training's list. Without ``options`` there is no
        guidance, as in training.
        """
        requests = description_prompts()
        chosen = [
            requests[int(np.random.default_rng([seed, index]).integers(len(requests)))]
            for index in range(first_index, first_index + len(images))
        ]
        prompts: list[list[Part]] = [
            [image, question_prompt(text)] for image, text in zip(images, chosen, strict=True)
        ]
        options = options or replace(self.options, guidance=0.0)
        return self.generate_from_parts(prompts, options, seed, batch, first_index)

    def edit(
        self,
        images: Sequence[Image.Image],
        instructions: Sequence[str],
        options: SamplingOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        first_index: int = 0,
    ) -> list[Image.Image]:
        """Change each image as its instruction says, with a model that was trained on edits.

        Guidance weighs the instruction against none, about the same image.
        """
        edits = [Edit(image, text) for image, text in zip(images, instructions, strict=True)]
        results: list[Image.Image] = []
        for start, part in batches(edits, batch):
            results += self.decode(self._sampled_codes(part, options, seed, first_index + start))
        return results

    def tokenizer_roundtrip(
        self, images: Sequence[Image.Image], batch: int = 32
    ) -> list[Image.Image]:
        """Encode and decode images with the image tokenizer alone: the best that any model can reach."""
        parts = (self.decode(self.encode(list(part))) for _, part in batches(images, batch))
        return [image for part in parts for image in part]

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
        """Regenerate the part of each image that its mask covers in white; all other codes are kept.

        Raises:
            ValueError: a mask has other proportions than its image, or covers nothing.
        """
        places = [
            masked_places(mask, image, self.resolution, self.side).flatten()
            for image, mask in zip(images, masks, strict=True)
        ]
        results: list[Image.Image] = []
        for start, part in batches(list(zip(images, places, texts, strict=True)), batch):
            codes_BN = self.encode([image for image, _, _ in part])
            covered_BN = torch.stack([covered_N for _, covered_N, _ in part]).to(self.device)
            codes_BN = codes_BN.masked_fill(covered_BN, self.vocabulary.codebook)
            prompts = [text for _, _, text in part]
            results += self.decode(
                self._sampled_codes(prompts, options, seed, first_index + start, codes_BN)
            )
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
        """Extend each image beyond its edges, one step per direction; all its codes are kept.

        Args:
            images: any size; the square that the model sees of each is extended.
            directions: ``left``, ``right``, ``up`` or ``down``, one per step.
            texts: one per step, or a single one for all.
            options, seed, batch, first_index: see the class.
            offset: code columns (rows) that a step adds beyond half an image.

        Raises:
            ValueError: an unknown direction, texts that do not match the steps, or an offset out of range.
        """
        if len(texts) not in (1, len(directions)):
            raise ValueError(f"{len(directions)} directions and {len(texts)} texts: one per step")
        texts = list(texts) * len(directions) if len(texts) == 1 else texts
        results: list[Image.Image] = []
        for start, part in batches(images, batch):
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
        """Answer one question about each image; the arguments are those of :meth:`reply`."""
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
        place: Sequence[int] = (),
    ) -> list[str]:
        """Return the model's answer to the last turn of each conversation.

        A conversation may hold any number of images in any place. Published models were trained with one
        image, at the beginning.

        Args:
            conversations: turns, the last of each by the user.
            max_new_tokens: longest answer.
            batch: conversations per forward pass.
            top_k: sample among the k most likely tokens; 1 is greedy, None samples among all.
            temperature: of the sampling, above 0.
            seed: of the sampling, with the index of the batch.
            place: numbers that tell calls apart, which would draw the same otherwise.
        """
        answers: list[str] = []
        for start, part in batches(conversations, batch):
            found = answer(
                self.model,
                self.vocabulary,
                self.question_sequences(part),
                max_new_tokens=max_new_tokens,
                top_k=top_k,
                temperature=temperature,
                generator=image_generator(seed, [*place, start], self.device),
                end=self.text.end_of_answer,
            )
            answers += [self.text.decode(ids).strip() for ids in found]
        return answers

    def sampler(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions | None = None,
        codes_BN: Tensor | None = None,
    ) -> ImageSampler:
        """Make the sampler of one image per prompt, for callers that use its rounds.

        Args:
            prompts: texts, sequences of :meth:`Networks.image_sequences`, or edits alone.
            options: None takes the pipeline's own.
            codes_BN: codes to begin with, see :class:`~showo_dist.generation.sampling.ImageSampler`.

        Raises:
            ValueError: guidance is asked for with images as CLIP features.
        """
        options = options or self.options
        unconditional: list[TokenSequence] | None = None
        edits = [prompt for prompt in prompts if isinstance(prompt, Edit)]
        if edits:
            assert len(edits) == len(prompts), "edits are sampled by themselves"
            prompts, unconditional = self.edit_sequences(edits)
        conditioned = any(
            isinstance(p, TokenSequence) and p.features_SC is not None for p in prompts
        )
        if conditioned and options.guidance > 0:
            raise ValueError(
                f"guidance {options.guidance:g} with images as CLIP features: only 0 is possible "
                "(--guidance 0)"
            )
        return ImageSampler(
            self.model,
            self.vocabulary,
            [
                self.text.encode(p) if isinstance(p, str) else p
                for p in prompts
                if not isinstance(p, Edit)
            ],
            budget=self.budget,
            options=options,
            tokens=self.tokens,
            codes_BN=codes_BN,
            unconditional=unconditional,
        )

    def _sampled_codes(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions | None,
        seed: int,
        first: int,
        codes_BN: Tensor | None = None,
    ) -> Tensor:
        """Generate codes (B, N) of the images ``first``, ``first`` + 1, …"""
        sampler = self.sampler(prompts, options, codes_BN)
        return sample_codes(sampler, self._generators(seed, first, len(prompts)))

    def _extended(
        self,
        grid_Bhw: Tensor,
        direction: str,
        text: str,
        options: SamplingOptions | None,
        generators: list[torch.Generator],
        offset: int,
    ) -> Tensor:
        """Extend code grids by one step."""
        prompts = [text] * len(grid_Bhw)

        def fill_window(window_Bhw: Tensor) -> Tensor:
            sampler = self.sampler(prompts, options, window_Bhw.flatten(1))
            return sample_codes(sampler, generators).view_as(window_Bhw)

        return extend_grid(
            grid_Bhw,
            check_direction(direction),
            self.side,
            growth(self.side, offset),
            self.vocabulary.codebook,
            fill_window,
        )

    def _generators(self, seed: int, first: int, count: int) -> list[torch.Generator]:
        return [image_generator(seed, [first + n], self.device) for n in range(count)]


class Conversation:
    """A conversation with a model, in texts and images, that keeps its turns.

    For every turn of the model the whole conversation is read again. Published models were trained on one
    image and questions about it, and on generation from a text or from one image and a text; no model was
    trained for other mixtures.

    Args:
        pipeline: the model.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.turns: list[Turn] = []

    def ask(
        self, *parts: Part, max_new_tokens: int = 100, top_k: int | None = 1, seed: int = 0
    ) -> str:
        """Add a turn of texts and images, and return the model's answer.

        With ``top_k`` other than 1, ``seed`` and the number of the turn decide what is drawn.
        """
        self.turns.append(user(*parts))
        (words,) = self.pipeline.reply(
            [self.turns], max_new_tokens, top_k=top_k, seed=seed, place=[len(self.turns)]
        )
        self.turns.append(assistant(words))
        return words

    def generate(
        self, *parts: Part, options: SamplingOptions | None = None, seed: int = 0
    ) -> Image.Image:
        """Add a turn of texts and images, and return the image that the model generates next.

        The model reads all texts and images of the conversation in order, without the marks of the speakers.
        Without ``options``, a model that reads images as CLIP features generates without guidance once the
        conversation holds an image.

        Raises:
            ValueError: guidance is asked for with images as CLIP features.
        """
        self.turns.append(user(*parts))
        history = [part for turn in self.turns for part in turn.parts]
        (image,) = self.pipeline.generate_from_parts(
            [history], options, seed, first_index=len(self.turns)
        )
        self.turns.append(assistant(image))
        return image


def _by_layout(sequences: Sequence[TokenSequence]) -> list[list[int]]:
    """Rows of the sequences without CLIP features, and of those with them; empty lists are left out."""
    with_features = [row for row, s in enumerate(sequences) if s.features_SC is not None]
    without = [row for row, s in enumerate(sequences) if s.features_SC is None]
    return [rows for rows in (without, with_features) if rows]


def batches(items: Sequence[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    """Yield the index of the first item and the items of each batch."""
    for start in range(0, len(items), size):
        yield start, list(items[start : start + size])
