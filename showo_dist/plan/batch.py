"""Make the micro-batch that a plan assumes: all flows of the config, samples of one assumed text length."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from showo_dist.config import TrainConfig, active_flows, wants_system_prompt
from showo_dist.plan.shapes import META
from showo_dist.sequences import PackedBatch, Sequence, Vocabulary, builders, pack
from showo_dist.sequences.masking import IGNORE, MaskedCodes, mask_schedule
from showo_dist.sequences.text import Words
from showo_dist.training.rows import cut, micro_steps_of

# Tokens of a reconstruction prompt and of the system prompt (docs/specification.md, section 7).
PROMPT_TOKENS, SYSTEM_TOKENS = 16, 28


def mean_masking_rate(config: TrainConfig) -> float:
    """Mean masked fraction of image tokens: the config's schedule averaged over uniform t."""
    training = config.training
    t = (torch.arange(1000) + 0.5) / 1000
    rates = mask_schedule(training.mask_schedule)(t).clamp(min=training.min_masking_rate)
    return float(rates.mean())


class AssumedSamples:
    """Makes sequences of a config's flows without data.

    Args:
        config: of the run.
        text_tokens: tokens of a caption, text or conversation; None: as many as the config allows, which
            gives the largest memory and time.
    """

    def __init__(self, config: TrainConfig, text_tokens: int | None = None) -> None:
        self.config = config
        showo = config.model.showo
        self.vocabulary = Vocabulary(showo.llm_vocab_size, showo.codebook_size, bos=0)
        self._rate = mean_masking_rate(config)
        self._text_tokens = text_tokens

    def micro_batch(self, multiple_of: int, scale: int = 1) -> PackedBatch:
        """One rank's micro-batch, packed; with a token budget, the longest row of an optimizer step.

        Args:
            multiple_of: tokens and labels are rounded up to a multiple of this, as in training.
            scale: factor of the config's batch sizes; without effect on a token budget.
        """
        if self.config.training.tokens_per_step is None:
            return self._packed(self.sequences(scale), multiple_of)
        return max(self.rows(multiple_of), key=lambda row: row.real_tokens)

    def rows(self, multiple_of: int, scale: int = 1) -> list[PackedBatch]:
        """The packed rows of one rank's optimizer step; arguments as for :meth:`micro_batch`."""
        if self.config.training.tokens_per_step is None:
            return [self.micro_batch(multiple_of, scale)] * self.micro_steps()
        read = [self.sequences() for _ in range(self.config.training.gradient_accumulation_steps)]
        every = [sequence for group in read for sequence in group]
        stretches = cut([len(sequence) for sequence in every], self.micro_steps())
        return [self._packed(every[s], multiple_of) for s in stretches]

    def _packed(self, sequences: list[Sequence], multiple_of: int) -> PackedBatch:
        showo = self.config.model.showo
        return pack(
            sequences,
            pad_id=self.vocabulary.pad,
            feature_width=showo.clip_dim if showo.w_clip_vit else 0,
            multiple_of=multiple_of,
        )

    def micro_steps(self) -> int:
        """Micro-steps of an optimizer step, as in training but for the assumed lengths of prompts."""
        return micro_steps_of(self.config, PROMPT_TOKENS, SYSTEM_TOKENS)

    def sequences(self, scale: int = 1) -> list[Sequence]:
        """The sequences of one rank's ``training.batch_size_*``; ``scale`` as in :meth:`micro_batch`."""
        return [
            self._sequence(name)
            for name, flow in active_flows(self.config).items()
            for _ in range(flow.batch_size * scale)
        ]

    def _sequence(self, flow: str) -> Sequence:
        budget = self.config.dataset.preprocessing.max_seq_length
        makers = {
            "t2i": self._t2i,
            "lm": self._lm,
            "mmu": self._mmu,
            "recon": self._recon,
            "edit": self._edit,
        }
        return makers[flow](budget)

    def _text(self, longest: int) -> list[int]:
        wanted = longest if self._text_tokens is None else min(longest, self._text_tokens)
        return [1] * wanted

    def _codes(self) -> Tensor:
        return torch.zeros(self.config.model.showo.num_vq_tokens, dtype=torch.int64)

    def _features(self) -> Tensor:
        showo = self.config.model.showo
        return torch.zeros(showo.clip_tokens, showo.clip_dim)

    def _masked(self) -> MaskedCodes:
        codes = self._codes()
        labels = torch.full_like(codes, IGNORE)
        training = self.config.training
        every = training.predict_all_tokens or training.noise_type == "random_replace"
        labels[: len(codes) if every else max(1, round(len(codes) * self._rate))] = 0
        return MaskedCodes(codes, labels, None, self._rate)

    def _t2i(self, budget: int) -> Sequence:
        return builders.t2i(self._text(budget), self._masked(), budget, self.vocabulary)

    def _lm(self, budget: int) -> Sequence:
        length = budget + self.config.model.showo.num_vq_tokens + 3
        return builders.lm(self._text(length), length, self.vocabulary)

    def _mmu(self, budget: int) -> Sequence:
        if self.config.dataset.und_type == "captioning":
            return builders.mmu_caption(self._text(budget), self._codes(), budget, self.vocabulary)
        system = [1] * (SYSTEM_TOKENS if wants_system_prompt(self.config) else 0)
        image = self._codes()
        if self.config.model.showo.w_clip_vit:
            image = self._features()
            # As in training: what the features leave of the length of a sequence with codes.
            room = budget + self.config.model.showo.num_vq_tokens - len(system) - len(image)
            budget = max(0, room)
        text = self._text(budget)
        images = [image] * self.config.dataset.max_images
        words = Words(text, [True] * len(text))
        return builders.answer_prompt([*images, words], self.vocabulary, system)

    def _edit(self, budget: int) -> Sequence:
        text, codes = self._text(budget), self._codes()
        return builders.edit(text, codes, self._masked(), budget, self.vocabulary)

    def _recon(self, budget: int) -> Sequence:
        prompt = [1] * PROMPT_TOKENS
        if self.config.model.showo.w_clip_vit:
            frozen = self.config.compat == "reference"
            return builders.recon_clip(
                prompt, self._features(), self._masked(), self.vocabulary, frozen
            )
        shrunk = 1 if self.config.training.resize_back else self.config.training.down_scale
        condition = self._codes()[: len(self._codes()) // shrunk**2]
        return builders.recon_vq(prompt, condition, self._masked(), self.vocabulary)


def on_meta(batch: PackedBatch) -> PackedBatch:
    """Move a batch to the meta device, except the visibility, whose values attention is planned from."""
    moved: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        moved[item.name] = value.to(META) if isinstance(value, Tensor) else value
    return PackedBatch(**moved)
