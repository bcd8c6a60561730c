"""Compare the variance of the gradient with independent and with stratified masking, at fixed weights.

    python benchmarks/masking_variance.py runs/mini/pretrain/checkpoint-000725 [--flow t2i] [--json FILE]

The checkpoint's config names the data; its global batch is the number of strata. Gradients of the flow's loss
are taken for ``--batches`` global batches, each masked ``--seeds`` times; both kinds of masking get the same
images and, but for the masked fraction, the same random numbers. The variance is the trace of the covariance
matrix, E |g - E g|^2 over all weights: of steps (images and masks vary) for each seed, and of masks alone for
each batch. A seed also decides which captions are dropped; ``--keep-captions`` leaves that out.
"""

import argparse
import statistics
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from common import report
from torch import Tensor

from showo_data import MicroBatch, Sample, Source
from showo_dist.checkpoint import CONFIG, BatchShape, CheckpointReader
from showo_dist.config import TrainConfig
from showo_dist.config.loader import load_file
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.pretrained import load_showo
from showo_dist.sequences import FLOWS, TOKEN_MULTIPLE, pack
from showo_dist.training.batches import SequenceMaker, masking_options
from showo_dist.training.setup import flow_specs, load_encoders, load_text

CPU = torch.device("cpu")
KINDS = ("independent", "stratified")


class Gradients:
    """Gradients of one flow's loss over global batches of the run that a checkpoint belongs to.

    Args:
        checkpoint: of the run.
        flow: with masks: t2i or recon.
        keep_captions: drop none.
    """

    def __init__(self, checkpoint: Path, flow: str, keep_captions: bool) -> None:
        self.flow = flow
        self.config = load_file(checkpoint / CONFIG, TrainConfig, check=False)
        if keep_captions:
            self.config.training.cond_dropout_prob = 0.0
        self.model: ShowO = load_showo(checkpoint)
        self.shape: BatchShape = CheckpointReader(checkpoint).state.batch
        self.samples = self.shape.total(flow)
        if not self.samples:
            raise SystemExit(f"{checkpoint}: its run has no {flow}")
        showo, text = self.config.model.showo, load_text(self.config)
        vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
        encoders = load_encoders(self.config, CPU)
        self.maker = SequenceMaker(self.config, text, vocabulary, encoders)
        clip = encoders.clip
        specs = flow_specs(self.config, clip.resolution if clip else None)
        self.source = Source(next(spec for spec in specs if spec.flow == flow))

    def read(self, batch: int) -> list[Sample]:
        """The samples of a global batch."""
        positions = range(batch * self.samples, (batch + 1) * self.samples)
        found = [self.source[position] for position in positions]
        return [sample for sample in found if isinstance(sample, Sample)]

    def __call__(self, samples: list[Sample], kind: str, seed: int) -> Tensor:
        """The flat gradient of the mean loss, with the masks of a seed."""
        config = deepcopy(self.config)
        config.training.seed, config.training.masking = seed, kind  # type: ignore[assignment]
        masking = masking_options(config, self.shape)
        maker = replace(self.maker, config=config, masking=masking)
        sequences = maker(MicroBatch({self.flow: samples}))
        width, pad = self.model.feature_width, maker.vocabulary.pad
        packed = pack(sequences, pad_id=pad, feature_width=width, multiple_of=TOKEN_MULTIPLE)
        self.model.zero_grad()
        scale_F = torch.zeros(len(FLOWS))
        index = FLOWS.index(self.flow)
        scale_F[index] = 1 / packed.label_counts()[index]
        self.model(packed, flow_scale_F=scale_F)[0].backward()
        return torch.cat([p.grad.view(-1) for p in self.model.parameters() if p.grad is not None])


class Spread:
    """Mean and variance of vectors that are added one by one (Welford), in fp32 with fp64 sums."""

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, torch.zeros(()), 0.0

    def add(self, vector: Tensor) -> None:
        self.count += 1
        before = vector - self._mean
        self._mean = self._mean + before / self.count
        self._squares += float((before * (vector - self._mean)).sum(dtype=torch.float64))

    @property
    def variance(self) -> float:
        return self._squares / (self.count - 1)


def measure(gradients: Gradients, batches: int, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Variances of each kind: of steps, by seed; of masks, by batch."""
    steps = {kind: [Spread() for _ in range(seeds)] for kind in KINDS}
    masks: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for batch in range(batches):
        samples = gradients.read(batch)
        for kind in KINDS:
            own = Spread()
            for seed in range(seeds):
                gradient = gradients(samples, kind, seed)
                steps[kind][seed].add(gradient)
                own.add(gradient)
            masks[kind].append(own.variance)
    of_steps = {kind: [spread.variance for spread in spreads] for kind, spreads in steps.items()}
    return {kind: {"step": of_steps[kind], "masks": masks[kind]} for kind in KINDS}


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--flow", choices=("t2i", "recon"), default="t2i")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--keep-captions", action="store_true", help="no condition dropout")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    options.device = "cpu"
    gradients = Gradients(options.checkpoint, options.flow, options.keep_captions)
    found = measure(gradients, options.batches, options.seeds)
    rows, findings = [], {}
    for of, what in (("step", "images and masks"), ("masks", "masks alone")):
        before, after = (found[kind][of] for kind in KINDS)
        for kind, values in zip(KINDS, (before, after), strict=True):
            rows.append(
                {
                    "masking": kind,
                    "what varies": what,
                    "n": len(values),
                    "variance": statistics.mean(values),
                    "standard error": standard_error(values),
                }
            )
        ratios = [a / b for a, b in zip(after, before, strict=True)]
        findings[f"stratified / independent, {what}"] = sum(after) / sum(before)
        findings[f"standard error of the {len(ratios)} ratios, {what}"] = standard_error(ratios)
    settings = {
        "checkpoint": str(options.checkpoint),
        "flow": options.flow,
        "samples per batch": gradients.samples,
        "keep captions": options.keep_captions,
        "batches": options.batches,
        "seeds": options.seeds,
    }
    report("masking variance", rows, findings, settings, options)


if __name__ == "__main__":
    main()
