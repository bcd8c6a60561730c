"""Image grids during training: masked images completed by the model, and images generated from text."""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from showo_data import MicroBatch
from showo_data.images import to_images
from showo_dist.generation.sampling import ImageSampler, sample_codes, sampling_options
from showo_dist.logging.grids import labelled_grid
from showo_dist.models.showo import ShowO
from showo_dist.runtime.numerics import autocast
from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import Sequence, pack
from showo_dist.training.batches import SequenceMaker, read_prompts

SHOWN = 6  # images per grid
DEFAULT_PROMPTS = (
    "a red apple on a wooden table",
    "a small boat on a lake at dusk",
    "two cats asleep on a sofa",
    "a street in the rain at night",
    "a bowl of noodles with an egg",
    "a lighthouse above a stormy sea",
)


class ImageGrids:
    """Makes the grids of ``experiment.generate_every``.

    Args:
        maker: of the run's sequences.
    """

    def __init__(self, maker: SequenceMaker) -> None:
        self.config, self.text, self.maker = maker.config, maker.text, maker
        self.vocabulary, self.encoders = maker.vocabulary, maker.encoders
        self.prompts = self._read_prompts()

    def _read_prompts(self) -> list[str]:
        path = self.config.dataset.params.validation_prompts_file
        if path is None:
            return list(DEFAULT_PROMPTS)
        return read_prompts("dataset.params.validation_prompts_file", path)[:SHOWN]

    @torch.no_grad()
    def __call__(
        self, model: ShowO, batch: MicroBatch | None, ranks: Ranks
    ) -> Iterator[tuple[str, Image.Image, str]]:
        """(name, image, caption) of every grid; collective, and of the flows that every rank has samples of.

        ZeRO-3 gathers weights in every forward pass, so a rank without samples cannot leave one out alone.
        """
        yield "t2i", self._sampled_codes(model), " | ".join(self.prompts)
        flows = ("t2i", "recon", "edit")
        samples = batch.samples if batch else {}
        present_F = torch.tensor([int(bool(samples.get(flow))) for flow in flows])
        counts = ranks.sum(present_F.to(ranks.device)).tolist()
        for flow, count in zip(flows, counts, strict=True):
            if batch is not None and count == ranks.world:
                rebuilt = self._rebuilt(model, flow, batch)
                yield f"rebuilt-{flow}", rebuilt, "original, tokenizer, prediction"

    def _computing(self, model: ShowO) -> torch.autocast:
        """The autocast of the training, for the model alone: the image tokenizer stays in fp32.

        The model is called without its engine, which computes in bf16 by autocast where weights are fp32.
        """
        parameter = next(model.parameters())
        precision = self.config.training.mixed_precision
        wanted = "fp32" if parameter.dtype == torch.bfloat16 else precision
        return autocast(wanted, parameter.device)

    def _decode(self, codes_BN: Tensor) -> list[Image.Image]:
        assert self.encoders.vq is not None
        device = next(self.encoders.vq.parameters()).device
        return to_images(self.encoders.vq.decode(codes_BN.to(device)))

    def _sampled_codes(self, model: ShowO) -> Image.Image:
        sampler = ImageSampler(
            model,
            self.vocabulary,
            [self.text.encode(prompt) for prompt in self.prompts],
            budget=self.config.dataset.preprocessing.max_seq_length,
            options=sampling_options(self.config),
            tokens=self.config.model.showo.num_vq_tokens,
        )
        device = sampler.codes_BN.device
        # The same noise at every step: differences between grids come from the weights alone.
        generator = torch.Generator(device).manual_seed(self.config.training.seed)
        with self._computing(model):
            codes_BN = sample_codes(sampler, generator)
        return labelled_grid([self._decode(codes_BN)], self.prompts, ["generated"])

    def _rebuilt(self, model: ShowO, flow: str, batch: MicroBatch) -> Image.Image:
        """Rows of originals, tokenizer round trips, and the model's guesses of the masked codes."""
        samples = batch.samples[flow][:SHOWN]
        sequences = self.maker(MicroBatch({flow: samples}))
        codes_BN = torch.stack(self.encoders.codes(samples))
        rows = [self._decode(codes_BN), self._decode(self._guess(model, sequences, codes_BN))]
        titles = ["tokenizer", "prediction"]
        pixels = [s.image_3HW for s in samples]
        if all(p is not None for p in pixels):
            rows.insert(0, to_images(torch.stack([p for p in pixels if p is not None])))
            titles.insert(0, "original")
        rates = [f"{s.masking_rate:.0%} masked" for s in sequences]
        return labelled_grid(rows, rates, titles)

    def _guess(self, model: ShowO, sequences: list[Sequence], codes_BN: Tensor) -> Tensor:
        """The codes with the most likely code in every masked place, (B, N)."""
        device = next(model.parameters()).device
        packed = pack(
            sequences,
            pad_id=self.vocabulary.pad,
            feature_width=model.feature_width,
            multiple_of=model.token_multiple,
        )
        with self._computing(model):
            logits_PV = model(packed.to(device), logit_rows=packed.label_rows_P.to(device))
        first, last = self.vocabulary.image_offset, self.vocabulary.mask
        best_P = logits_PV[:, first:last].argmax(dim=-1).cpu()
        guess_BN, start = codes_BN.clone(), 0
        for row, sequence in enumerate(sequences):
            count = len(sequence.label_rows_P)
            image = sequence.targets_P >= first  # without soi and eoi, which t2i predicts too
            # Row of a label minus row of the first image token; eoi is the last row of the sequence.
            places = sequence.label_rows_P[image] - (len(sequence) - 1 - codes_BN.shape[1])
            guess_BN[row, places] = best_P[start : start + count][image]
            start += count
        return guess_BN
