"""Sampling of image codes by masked prediction (docs/specification.md, section 9).

Every round predicts all masked codes of an image at once and masks some of them again, by default the least
certain ones (``samplers``). The text before the image is read once and kept in a cache; a round computes the
rows of the image alone.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from showo_dist.config import TrainConfig
from showo_dist.config.training import REMASKING
from showo_dist.generation.cache import PrefixCache
from showo_dist.generation.samplers import ONE_BY_ONE, SAMPLERS, Generators, Round, draw, nucleus
from showo_dist.models.showo import ShowO
from showo_dist.sequences import Sequence, Vocabulary
from showo_dist.sequences.builders import t2i_prompt
from showo_dist.sequences.masking import Schedule, mask_schedule
from showo_kernels import Span

GUIDANCE_SCHEDULES = ("constant", "linear")


@dataclass(frozen=True)
class SamplingOptions:
    """Settings of the sampler.

    Attributes:
        steps: rounds (released models: 50 at 512 px, 16 at 256 px).
        guidance: w of ``(1+w)·cond - w·uncond``; 0 leaves out the unconditional half of the batch.
        temperature: scale of the noise on the confidences; it shrinks every round, cumulatively as published.
        schedule: share of codes that are still masked after a round.
        sampler: a key of :data:`~showo_dist.generation.samplers.SAMPLERS`.
        top_p: sample among the most likely codes that together have this probability; 1: among all.
        remask: share of places that the samplers ``remdm`` and ``refine`` mask again.
        guidance_schedule: ``constant``, or ``linear``: from 0 in the first round to w in the last one.
        guidance_interval: guidance is applied between these shares of the rounds alone (arXiv 2404.07724).
    """

    steps: int = 16
    guidance: float = 1.75
    temperature: float = 1.0
    schedule: Schedule = field(default_factory=lambda: mask_schedule("cosine"))
    sampler: str = "confidence"
    top_p: float = 1.0
    remask: float = 0.1
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def weight(self, step: int, steps: int) -> float:
        """Return the guidance w of a round, counted from 0."""
        progress = step / max(steps - 1, 1)
        first, last = self.guidance_interval
        if not first <= progress <= last:
            return 0.0
        return self.guidance * (progress if self.guidance_schedule == "linear" else 1.0)

    def __post_init__(self) -> None:
        first, last = self.guidance_interval
        samplers, schedules = ", ".join(SAMPLERS), ", ".join(GUIDANCE_SCHEDULES)
        expected = {
            "steps": (self.steps >= 1, "1 or more"),
            "guidance": (self.guidance >= 0, "0 or more"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "sampler": (self.sampler in SAMPLERS, f"one of {samplers}"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "remask": (0 <= self.remask <= 1, "0 to 1"),
            "guidance_schedule": (self.guidance_schedule in GUIDANCE_SCHEDULES, schedules),
            "guidance_interval": (0 <= first <= last <= 1, "two numbers from 0 to 1, in order"),
        }
        for name, (fits, words) in expected.items():
            if not fits:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected {words}")

    def record(self) -> dict[str, Any]:
        """Return the settings for a record of what made an image: the newer ones where they are not usual."""
        usual = asdict(SamplingOptions())
        always = ["guidance"]
        if SAMPLERS[self.sampler].by_confidence:
            always.append("temperature")
        if self.sampler != ONE_BY_ONE:  # which has as many rounds as codes
            always.append("steps")
        return {
            name: getattr(self, name)
            for name in _NAMES
            if name in always or (name not in _DEPENDING and getattr(self, name) != usual[name])
        }

    def changed(self, arguments: argparse.Namespace) -> "SamplingOptions":
        """Return the options with those that a command line gives, see :func:`add_sampling_options`.

        Raises:
            ValueError: one of them is wrong, or has no effect with the sampler.
        """
        given = {name: getattr(arguments, name, None) for name in _NAMES}
        if given["guidance_interval"]:
            given["guidance_interval"] = tuple(given["guidance_interval"])
        changed = replace(self, **{n: value for n, value in given.items() if value is not None})
        if given["remask"] is not None and changed.sampler not in REMASKING:
            raise ValueError(
                f"--remask {changed.remask}: without effect with --sampler {changed.sampler}"
            )
        if given["steps"] is not None and changed.sampler == ONE_BY_ONE:
            raise ValueError(
                f"steps = {changed.steps}: {ONE_BY_ONE} has as many rounds as an image has codes"
            )
        if given["temperature"] is not None and not SAMPLERS[changed.sampler].by_confidence:
            raise ValueError(
                f"--temperature {changed.temperature:g}: without effect with --sampler {changed.sampler}"
            )
        changed._check_guidance([name for name, value in given.items() if value is not None])
        return changed

    def _check_guidance(self, given: Seq[str]) -> None:
        """Refuse a schedule or interval that is given, and leaves no guidance or has none to change."""
        for name in ("guidance_schedule", "guidance_interval"):
            if name not in given:
                continue
            option = f"--{name.replace('_', '-')}"
            if self.guidance == 0:
                raise ValueError(f"{option}: without effect with guidance 0")
            if self.sampler != ONE_BY_ONE and not any(
                self.weight(step, self.steps) for step in range(self.steps)
            ):
                raise ValueError(f"{option}: none of the {self.steps} rounds has guidance")


_DEPENDING = ("steps", "temperature")  # without effect with some samplers
_NAMES = [f.name for f in fields(SamplingOptions) if f.name != "schedule"]


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each of the :class:`SamplingOptions` but the schedule; without it, it is None."""
    parser.add_argument("--steps", type=int, help="rounds per image; default: the config's")
    parser.add_argument("--guidance", type=float, help="guidance weight w; 0: none")
    parser.add_argument("--temperature", type=float, help="of the noise on the confidences")
    parser.add_argument("--sampler", choices=SAMPLERS, help="which places a round masks again")
    parser.add_argument("--top-p", type=float, help="probability of the codes to sample among")
    parser.add_argument("--remask", type=float, help="share of places masked again")
    parser.add_argument(
        "--guidance-schedule", choices=GUIDANCE_SCHEDULES, help="linear: from 0 to w"
    )
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="shares of the rounds between which guidance is applied",
    )


def sampling_options(config: TrainConfig) -> SamplingOptions:
    """Return the sampler settings of ``training.*`` in a config."""
    training = config.training
    return SamplingOptions(
        steps=training.generation_timesteps,
        guidance=training.guidance_scale,
        temperature=training.generation_temperature,
        schedule=mask_schedule(training.mask_schedule),
        sampler=training.generation_sampler,
        top_p=training.generation_top_p,
        remask=training.generation_remask,
        guidance_schedule=training.guidance_schedule,
        guidance_interval=(training.guidance_interval[0], training.guidance_interval[1]),
    )


def split_canvas(sequence: Sequence, tokens: int) -> tuple[Sequence, Tensor, int]:
    """Cut a sequence before the bidirectional span that holds its last image.

    Rows before that span do not attend to it, so their keys and values are the same in every round. The
    image does not attend to rows after its span (the causal eoi of CLIP reconstruction), so they are dropped.

    Args:
        sequence: a sequence of text-to-image or reconstruction.
        tokens: image tokens N of the image.

    Returns:
        The sequence before the span, the ids (Q,) of the span, and the row of the first image token in it.
    """
    spans = list(sequence.spans)
    while not spans[-1].bidirectional:
        spans.pop()
    *before, canvas = spans
    start = sum(span.length for span in before)
    ids_Q = sequence.ids_L[start : start + canvas.length]
    frame = canvas.length - tokens  # soi and eoi, where the span includes them
    assert frame in (0, 2) and not canvas.is_global and start > 0
    return _beginning(sequence, before, start), ids_Q, frame // 2


def _beginning(sequence: Sequence, spans: list[Span], length: int) -> Sequence:
    """Return the first ``length`` tokens, which ``spans`` cover, without labels."""
    positions = sequence.position_ids_L
    if positions is not None:
        positions = positions[:length]
    return replace(
        sequence,
        ids_L=sequence.ids_L[:length],
        spans=spans,
        position_ids_L=positions,
        label_rows_P=sequence.label_rows_P[:0],
        targets_P=sequence.targets_P[:0],
        weights_P=None,
    )


class Canvas:
    """The images of a batch, all of one size, after prefixes of any length.

    Args:
        model: in eval mode.
        vocabulary: the model's ids.
        sequences: X sequences that end with their image: those of B images, or with guidance of 2B.
        tokens: image tokens N of an image.
    """

    def __init__(
        self, model: ShowO, vocabulary: Vocabulary, sequences: list[Sequence], tokens: int
    ) -> None:
        parts = [split_canvas(sequence, tokens) for sequence in sequences]
        device = next(model.parameters()).device
        self._offset, self._first = vocabulary.image_offset, parts[0][2]
        self.ids_XQ = torch.stack([ids_Q for _, ids_Q, _ in parts]).to(device)
        count, rows = self.ids_XQ.shape
        self._cache = PrefixCache(
            model, vocabulary, [prefix for prefix, _, _ in parts], room=rows, rows=rows
        )
        places_N = torch.arange(tokens, device=device) + self._first
        self._logit_rows = (torch.arange(count, device=device)[:, None] * rows + places_N).flatten()
        self._tokens = tokens

    def logits(self, codes_BN: Tensor, ids: slice = slice(None)) -> Tensor:
        """Return logits (X, N, ids) of the image places when the images hold ``codes_BN``.

        Args:
            codes_BN: int64 codes; X is a multiple of B, and each copy gets the same codes.
            ids: the part of the vocabulary to compute.
        """
        image = slice(self._first, self._first + self._tokens)
        copies = len(self.ids_XQ) // len(codes_BN)
        self.ids_XQ[:, image] = (codes_BN + self._offset).repeat(copies, 1)
        logits = self._cache.extend(self.ids_XQ, self._logit_rows, ids)
        self._cache.forget()  # the next round computes the same rows with other codes
        return logits.unflatten(0, (len(self.ids_XQ), self._tokens))


class ImageSampler:
    """Generates the masked codes of a batch of images.

    Args:
        model: in eval mode; its device and dtype are used.
        vocabulary: the model's ids.
        prompts: text ids of each image, or whole sequences that end with their image (reconstruction,
            images among the text).
        budget: most tokens of a prompt that is text, task token and bos included.
        options: see :class:`SamplingOptions`.
        tokens: N, when ``codes_BN`` is None.
        codes_BN: int64 codes to begin with; the code ``vocabulary.codebook`` marks a place to generate.
            None generates all places.
        unconditional: sequences of the unconditional half of guidance; None: text-to-image without text.
    """

    def __init__(
        self,
        model: ShowO,
        vocabulary: Vocabulary,
        prompts: Seq[list[int] | Sequence],
        *,
        budget: int,
        options: SamplingOptions,
        tokens: int = 0,
        codes_BN: Tensor | None = None,
        unconditional: Seq[Sequence] | None = None,
    ) -> None:
        self.model, self.vocabulary, self.options = model, vocabulary, options
        if codes_BN is None:
            codes_BN = torch.full((len(prompts), tokens), vocabulary.codebook)
        blank_N = torch.full(codes_BN.shape[1:], vocabulary.codebook)
        self._sequences = [
            p if isinstance(p, Sequence) else t2i_prompt(p, blank_N, budget, vocabulary)
            for p in prompts
        ]
        if options.guidance > 0:  # the unconditional half: no text, as condition dropout trains it
            nothing = [t2i_prompt([], blank_N, 2, vocabulary)] * len(prompts)
            self._sequences += nothing if unconditional is None else unconditional
        self.codes_BN = codes_BN.to(next(model.parameters()).device)
        self._given_BN = self.codes_BN != vocabulary.codebook
        self._chosen_BN = torch.ones(self.codes_BN.shape, device=self.codes_BN.device)

    @cached_property
    def canvas(self) -> Canvas:
        """The prompts' keys and values, computed once when the first logits are needed."""
        return Canvas(self.model, self.vocabulary, self._sequences, self.codes_BN.shape[1])

    def image_logits(self, ids: slice = slice(None)) -> Tensor:
        """Return logits (B or 2B, N, ids) of the image places: conditional rows, then unconditional ones.

        Args:
            ids: the part of the vocabulary to compute.
        """
        return self.canvas.logits(self.codes_BN, ids)

    def _code_logits(self, guidance_B11: Tensor) -> Tensor:
        """Return guided logits (B, N, K) over the codebook, fp32; the guidance is float64."""
        codes = slice(self.vocabulary.image_offset, self.vocabulary.mask)
        logits = self.image_logits(codes).float()
        if self.options.guidance <= 0:
            return logits
        conditional, unconditional = logits.chunk(2)
        more_B11, less_B11 = (1 + guidance_B11).float(), guidance_B11.float()
        return more_B11 * conditional - less_B11 * unconditional

    def rounds(self, generators: Generators = None) -> Iterator[Tensor]:
        """Yield the predicted codes (B, N) of every round; the last ones are the image.

        Between rounds ``codes_BN`` holds the codes that were kept and ``vocabulary.codebook`` elsewhere.
        """
        temperature = self.options.temperature
        places_B = (~self._given_BN).sum(dim=1).tolist()
        # Where images have rounds of their own number, the others wait for the longest.
        steps_B = [
            SAMPLERS[self.options.sampler].rounds(self.options.steps, places) for places in places_B
        ]
        steps = max(steps_B)
        weights_SB = [[self.options.weight(s, own) for own in steps_B] for s in range(steps)]
        guidance_SB11 = torch.tensor(weights_SB, dtype=torch.float64)[..., None, None]
        for step, guidance_B11 in enumerate(guidance_SB11.to(self.codes_BN.device)):
            temperature *= 1.0 - (step + 1) / steps
            yield self._round(step, steps, temperature, guidance_B11, generators)

    def _round(
        self,
        step: int,
        steps: int,
        temperature: float,
        guidance_B11: Tensor,
        generators: Generators,
    ) -> Tensor:
        options = self.options
        probabilities_BNK = self._code_logits(guidance_B11).softmax(dim=-1)
        drawn_BNK = probabilities_BNK
        if options.top_p < 1:
            drawn_BNK = nucleus(probabilities_BNK, options.top_p)
        unknown_BN = self.codes_BN == self.vocabulary.codebook
        guess_BN = torch.where(unknown_BN, draw(drawn_BNK, generators), self.codes_BN)
        chosen_BN = probabilities_BNK.gather(-1, guess_BN[..., None]).squeeze(-1)
        self._chosen_BN = chosen_BN.where(unknown_BN, self._chosen_BN)
        masked_BN = SAMPLERS[options.sampler].masked(
            Round(
                step=step,
                steps=steps,
                schedule=options.schedule,
                unknown_BN=unknown_BN,
                given_BN=self._given_BN,
                chosen_BN=self._chosen_BN,
                temperature=temperature,
                remask=options.remask,
                generators=generators,
            )
        )
        self.codes_BN = guess_BN.masked_fill(masked_BN & ~self._given_BN, self.vocabulary.codebook)
        return guess_BN


def sample_codes(sampler: ImageSampler, generators: Generators = None) -> Tensor:
    """Run all rounds and return the final codes, int64 (B, N).

    Args:
        sampler: the images to generate.
        generators: random numbers on the model's device. With one generator per image, an image does not
            depend on the rest of its batch; a single one, or torch's own when None, gives the published
            order of random numbers.
    """
    codes = sampler.codes_BN
    for guess in sampler.rounds(generators):
        codes = guess
    return codes
