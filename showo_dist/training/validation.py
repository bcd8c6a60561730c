"""Held-out loss: the packed pass without gradient, over fixed samples with fixed masks."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from showo_data import FlowSpec, MicroBatch, Sample, Source
from showo_dist.config import TrainConfig, active_flows
from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import FLOWS, TOKEN_MULTIPLE, PackedBatch, pack
from showo_dist.training.batches import SequenceMaker, masking_options
from showo_dist.training.engine import Engine

# Constants, not settings: every run and every checkpoint is measured on the same masks and prompts, in the
# same batches, whatever the run's seed and batch size.
SEED = 0
BATCH = 8


@dataclass(frozen=True)
class _Chunk:
    """Up to ``BATCH`` consecutive samples of one flow, which are one forward pass."""

    flow: str
    samples: range


class Validation:
    """Measures the held-out loss of every active flow that has validation data.

    A sample's mask, prompt and batch depend on its place in the shards alone, and the ranks' sums are added
    in a fixed order. So two checkpoints compare exactly, and any number of ranks gives the same value.

    Args:
        config: of the run.
        specs: the training streams of its flows (:func:`~showo_dist.training.setup.flow_specs`).
        maker: builds training sequences; its encoders and tokenizer are used here too.
        ranks: this process among the others.
        log: takes one line for the log.
        row_steps: row capacities per octave (:func:`~showo_dist.training.batches.row_steps`).

    Raises:
        ValueError: no sample of a flow can be read.
    """

    def __init__(
        self,
        config: TrainConfig,
        specs: list[FlowSpec],
        maker: SequenceMaker,
        ranks: Ranks,
        log: Callable[[str], None],
        row_steps: int = 0,
    ) -> None:
        self.ranks, self.log = ranks, log
        self.coefficients = {n: flow.coefficient for n, flow in active_flows(config).items()}
        self._limit = config.dataset.params.validation_samples
        self._specs = _held_out(config, specs)
        self._maker = _fixed(config, maker)
        # Rank 0 builds missing indexes alone, so that the other ranks only read them.
        ranks.first_alone(self._check)
        self._batches: list[PackedBatch] | None = None
        self._steps = row_steps
        self._chunks: list[_Chunk] = []

    def __bool__(self) -> bool:
        """Whether any flow has validation data."""
        return bool(self._specs)

    def _check(self) -> None:
        """Refuse data of which no sample can be read, before the first step."""
        for spec in self._specs:
            source = Source(spec)
            count = min(self._limit, len(source))
            if not any(isinstance(source[place], Sample) for place in range(count)):
                key = f"dataset.params.validation_{spec.flow}_shards_path_or_url"
                raise ValueError(f"{key}: none of its first {count} samples can be read")

    def __call__(self, engine: Engine) -> dict[str, float]:
        """Measure; collective.

        Returns:
            ``validation/FLOW`` in nats per label, and ``validation/loss``: coefficients times means.
        """
        if self._batches is None:
            self._batches = self._read(engine.module.feature_width)
        sums_CF, counts_CF = self._measure(engine, self._batches)
        # A fixed order of addition, chunk by chunk, independent of the number of ranks.
        means_F = (sums_CF.sum(0) / counts_CF.sum(0)).tolist()
        means = {f: m for f, m in zip(FLOWS, means_F, strict=True) if not math.isnan(m)}
        metrics = {f"validation/{flow}": mean for flow, mean in means.items()}
        total = sum(self.coefficients[flow] * mean for flow, mean in means.items())
        return {"validation/loss": total, **metrics}

    def _read(self, feature_width: int) -> list[PackedBatch]:
        """This rank's chunks as packed batches on the CPU; they are kept, since they never change."""
        sources = {spec.flow: Source(spec) for spec in self._specs}
        for flow, source in sources.items():
            count = min(self._limit, len(source))
            starts = range(0, count, BATCH)
            self._chunks += [_Chunk(flow, range(s, min(s + BATCH, count))) for s in starts]
        read = dict.fromkeys(sources, 0)
        batches = []
        # Dealt in turn, so that ranks have equal work in every flow.
        for chunk in self._chunks[self.ranks.rank :: self.ranks.world]:
            found = [sources[chunk.flow][i] for i in chunk.samples]
            # Unreadable samples are left out, as in training; the mean divides by the labels that remain.
            samples = [sample for sample in found if isinstance(sample, Sample)]
            read[chunk.flow] += len(samples)
            batches.append(self._pack(MicroBatch({chunk.flow: samples}), feature_width))
        self._report_read(read)
        # Under ZeRO-3 all ranks run the same number of forward passes: the last ones may be empty.
        most = -(-len(self._chunks) // self.ranks.world)
        empty = self._pack(MicroBatch({}), feature_width)
        return batches + [empty] * (most - len(batches))

    def _pack(self, batch: MicroBatch, feature_width: int) -> PackedBatch:
        return pack(
            self._maker(batch),
            pad_id=self._maker.vocabulary.pad,
            feature_width=feature_width,
            multiple_of=TOKEN_MULTIPLE,
            steps=self._steps,
        )

    def _report_read(self, read: dict[str, int]) -> None:
        counts = self.ranks.sum(torch.tensor(list(read.values()), device=self.ranks.device))
        for flow, count in zip(read, counts.tolist(), strict=True):
            wanted = sum(len(chunk.samples) for chunk in self._chunks if chunk.flow == flow)
            self.log(f"validation of {flow}: {count} of {wanted} held-out samples")

    @torch.no_grad()
    def _measure(self, engine: Engine, batches: list[PackedBatch]) -> tuple[Tensor, Tensor]:
        """Loss sums and label counts (chunks, flows) of all ranks, float64."""
        device = self.ranks.device
        sums_CF = torch.zeros(len(self._chunks), len(FLOWS), dtype=torch.float64, device=device)
        counts_CF = torch.zeros_like(sums_CF)
        scale_F = torch.ones(len(FLOWS), device=device)
        with _evaluating(engine):
            for number, batch in enumerate(batches):
                _, sums_F = engine(batch.to(device), flow_scale_F=scale_F)
                chunk = self.ranks.rank + number * self.ranks.world
                if chunk < len(self._chunks):
                    # Each rank fills its own rows; adding the others' zeros below is exact in any order.
                    sums_CF[chunk], counts_CF[chunk] = sums_F.double(), batch.label_counts()
        return self.ranks.sum(sums_CF), self.ranks.sum(counts_CF)


@contextmanager
def _evaluating(engine: Engine) -> Iterator[None]:
    """Evaluation mode, and plain cross-entropy without label smoothing."""
    smoothing, engine.module.label_smoothing = engine.module.label_smoothing, 0.0
    engine.train(False)
    try:
        yield
    finally:
        engine.train()
        engine.module.label_smoothing = smoothing


def _held_out(config: TrainConfig, specs: list[FlowSpec]) -> list[FlowSpec]:
    """The flows' validation data in the order of the shards, whatever the run's data order."""
    flows = active_flows(config)
    return [
        replace(
            spec,
            urls=flows[spec.flow].validation_paths,
            mixture=(),
            seed=SEED,
            streams=1,
            window=1,
            sampling="exact",
        )
        for spec in specs
        if flows[spec.flow].validation_paths
    ]


def _fixed(config: TrainConfig, maker: SequenceMaker) -> SequenceMaker:
    """The same sequences as in training, with fixed noise and without condition dropout."""
    fixed = deepcopy(config)
    fixed.training.seed = SEED
    fixed.training.cond_dropout_prob = 0.0
    rates = tuple(config.training.eval_mask_ratios or ())
    return replace(maker, config=fixed, masking=replace(masking_options(fixed), fixed_rates=rates))
