"""Samples of each flow to sequences, with the sample's own random numbers."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from showo_data import MicroBatch, Sample
from showo_dist.config import TrainConfig
from showo_dist.models.encoders import Encoders
from showo_dist.sequences import FLOWS, Sequence, TextEncoder, Vocabulary, builders
from showo_dist.sequences.masking import (
    MaskedCodes,
    MaskingOptions,
    mask_codes,
    mask_schedule,
    sample_rng,
)
from showo_dist.sequences.text import SYSTEM_PROMPT, description_prompts, question_prompt


def masking_options(config: TrainConfig) -> MaskingOptions:
    """The config's masking."""
    training = config.training
    return MaskingOptions(
        schedule=mask_schedule(training.mask_schedule),
        min_rate=training.min_masking_rate,
        noise_type=training.noise_type,
        predict_all=training.predict_all_tokens,
        contiguous_prob=training.mask_contiguous_region_prob or 0.0,
    )


@dataclass
class SequenceMaker:
    """Builds the sequences of a micro-batch, flow by flow in the order of :data:`FLOWS`.

    Attributes:
        config: of the run.
        text: the text encoder.
        vocabulary: the model's ids.
        encoders: frozen image encoders.
    """

    config: TrainConfig
    text: TextEncoder
    vocabulary: Vocabulary
    encoders: Encoders

    def __call__(self, batch: MicroBatch) -> list[Sequence]:
        sequences = []
        for flow in FLOWS:
            samples = batch.samples.get(flow, [])
            if samples:
                sequences += getattr(self, f"_{flow}")(samples)
        return sequences

    @cached_property
    def _masking(self) -> MaskingOptions:
        return masking_options(self.config)

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return [self.text.encode(question_prompt(prompt)) for prompt in description_prompts()]

    @cached_property
    def _system(self) -> list[int]:
        """CLIP models have a system prompt in the tuning phase, models of codes only when asked."""
        dataset, clip = self.config.dataset, self.encoders.clip is not None
        wanted = dataset.und_type == "llava_tuning" if clip else dataset.add_system_prompt
        return self.text.encode(SYSTEM_PROMPT) if wanted else []

    @property
    def _budget(self) -> int:
        return self.config.dataset.preprocessing.max_seq_length

    @property
    def _length(self) -> int:
        return self._budget + self.config.model.showo.num_vq_tokens + 3

    def _rng(self, sample: Sample) -> np.random.Generator:
        return sample_rng(self.config.training.seed, sample.flow, sample.position)

    def _masked(self, codes_N: Tensor, rng: np.random.Generator) -> MaskedCodes:
        return mask_codes(codes_N, self.vocabulary.codebook, self._masking, rng)

    def _prompt(self, rng: np.random.Generator) -> list[int]:
        return self._prompts[rng.integers(len(self._prompts))]

    def _t2i(self, samples: list[Sample]) -> list[Sequence]:
        sequences = []
        for sample, codes in zip(samples, self.encoders.codes(samples), strict=True):
            rng = self._rng(sample)
            masked = self._masked(codes, rng)
            if rng.random() < self.config.training.cond_dropout_prob:
                sequences.append(builders.t2i_dropped(masked, self.vocabulary))
                continue
            ids = self.text.encode(sample.text or "")
            sequences.append(builders.t2i(ids, masked, self._budget, self.vocabulary))
        return sequences

    def _lm(self, samples: list[Sample]) -> list[Sequence]:
        return [
            builders.lm(self.text.encode(s.text or ""), self._length, self.vocabulary)
            for s in samples
        ]

    def _mmu(self, samples: list[Sample]) -> list[Sequence]:
        if self.config.dataset.und_type == "captioning":
            return self._captioning(samples)
        return self._mmu_clip(samples) if self.encoders.clip else self._mmu_vq(samples)

    def _captioning(self, samples: list[Sample]) -> list[Sequence]:
        sequences = []
        for sample, codes in zip(samples, self.encoders.codes(samples), strict=True):
            caption = self.text.encode(sample.text or "")
            if self.config.dataset.params.add_caption_prompt:
                prompt = self._prompt(self._rng(sample))
                caption = prompt + self.text.encode(f" {sample.text or ''}".rstrip())
            sequences.append(builders.mmu_caption(caption, codes, self._budget, self.vocabulary))
        return sequences

    def _mmu_vq(self, samples: list[Sample]) -> list[Sequence]:
        sequences = []
        for sample, codes in zip(samples, self.encoders.codes(samples), strict=True):
            ids, supervised = self.text.conversation(sample.conversation or [])
            sequences.append(
                builders.mmu_llava(
                    ids, supervised, codes, self._budget, self.vocabulary, self._system
                )
            )
        return sequences

    def _mmu_clip(self, samples: list[Sample]) -> list[Sequence]:
        sequences = []
        for sample, features in zip(samples, self.encoders.features(samples), strict=True):
            ids, supervised = self.text.conversation(sample.conversation or [])
            sequences.append(
                builders.mmu_clip(
                    ids, supervised, self._system, features, self._length, self.vocabulary
                )
            )
        return sequences

    def _recon(self, samples: list[Sample]) -> list[Sequence]:
        codes = self.encoders.codes(samples)
        clip = self.encoders.clip is not None
        conditions = (
            self.encoders.features(samples) if clip else self.encoders.condition_codes(samples)
        )
        sequences = []
        for sample, target, condition in zip(samples, codes, conditions, strict=True):
            rng = self._rng(sample)
            masked, prompt = self._masked(target, rng), self._prompt(rng)
            if clip:
                frozen = self.config.compat == "reference"
                sequence = builders.recon_clip(prompt, condition, masked, self.vocabulary, frozen)
            else:
                sequence = builders.recon_vq(prompt, condition, masked, self.vocabulary)
            sequences.append(sequence)
        return sequences
