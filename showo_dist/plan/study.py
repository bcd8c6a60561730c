"""Predict memory, traffic and time of a config on a cluster, for several settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import torch

from showo_dist.config import TrainConfig
from showo_dist.models.showo import build_showo
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, StepProfile, fake_ranks
from showo_dist.plan.ledger_step import StepLedger, ledger_of_step
from showo_dist.plan.roofline import Rates, on_curve
from showo_dist.plan.timing import (
    ADAM_BYTES_PER_PARAMETER,
    EMA_BYTES_PER_PARAMETER,
    MUON_BYTES_PER_PARAMETER,
    Cluster,
    Compute,
    Gpu,
    StepTime,
    Update,
    step_bytes,
    step_time,
)
from showo_dist.sequences import TOKEN_MULTIPLE
from showo_dist.training.metrics import Work
from showo_dist.training.muon import by_muon, orthogonalisation_flops
from showo_dist.training.rows import of_engine

ZERO_STAGES = (0, 1, 2, 3)
_CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Setting:
    """The keys that a plan varies.

    Attributes:
        zero_stage: 0 to 3.
        checkpointing: whether activations are recomputed in the backward pass.
        scale: factor of the config's batch sizes.
        every: recompute the first of so many blocks; None: as in the config.
        tokens_per_step: tokens of a row; None: as in the config.
    """

    zero_stage: int
    checkpointing: bool
    scale: int
    every: int | None = None
    tokens_per_step: int | None = None

    def of(self, config: TrainConfig) -> TrainConfig:
        """Copy the config with this setting, except the batch sizes."""
        changed = deepcopy(config)
        changed.distributed.zero_stage = cast(Any, self.zero_stage)
        changed.model.gradient_checkpointing = self.checkpointing
        if self.every is not None:
            changed.model.gradient_checkpointing_every = self.every
        if self.tokens_per_step is not None:
            changed.training.tokens_per_step = self.tokens_per_step
        return changed


@dataclass(frozen=True)
class Prediction:
    """Prediction of one optimizer step of one rank with a setting.

    Attributes:
        sent: bytes of payload that the rank sends.
        tokens: tokens that the rank computes, without padding.
        mfu: model FLOPs utilisation.
    """

    setting: Setting
    profile: StepProfile
    compute: Compute
    time: StepTime
    sent: float
    tokens: int
    mfu: float

    def days(self, steps: int) -> float:
        """Days that ``steps`` optimizer steps take."""
        return steps * self.time.total_s / 86400


def model_of_shapes(config: TrainConfig) -> Any:
    """The config's model on the meta device; its parameter count is exact."""
    with torch.device("meta"):
        return build_showo(config.model.showo)


def update_of(model: Any, config: TrainConfig) -> Update:
    """Work of one optimizer step over all parameters."""
    parameters = sum(p.numel() for p in model.parameters())
    averaging = EMA_BYTES_PER_PARAMETER * parameters if config.training.ema.decay is not None else 0
    if config.optimizer.name == "adamw":
        return Update(ADAM_BYTES_PER_PARAMETER * parameters + averaging)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    matrices = [shape for name, shape in shapes.items() if by_muon(name, shape)]
    saved = ADAM_BYTES_PER_PARAMETER - MUON_BYTES_PER_PARAMETER
    total = ADAM_BYTES_PER_PARAMETER * parameters + averaging
    moved = total - saved * sum(map(prod, matrices))
    return Update(moved, orthogonalisation_flops(matrices, config.optimizer.muon.ns_steps))


@dataclass(frozen=True)
class Passes:
    """Seconds of one micro-step of a rank by the ledger of the code that runs; the mean of a step's rows.

    Attributes:
        forward_s: packing, planning and forward, with the waits and copies of the step.
        backward_s: backward, recomputation included.
        encoders_s: of the frozen encoders.
        launch_s: of all that, spent on kernels that are shorter than the launch of the next one.
    """

    forward_s: float
    backward_s: float
    encoders_s: float
    launch_s: float

    @classmethod
    def of(cls, step: StepLedger, rates: Rates) -> Passes:
        """Seconds of the micro-steps of a ledger at a device's rates."""
        ledger = step.ledger
        sums = dict.fromkeys(
            ("forward", "backward", "encoders", "launch", "step"), 0.0
        )  # "step" is the update's
        for entry in ledger.entries:
            phase = {"recompute": "backward", "backward": "backward", "step": "step"}.get(
                entry.phase
            )
            key = "encoders" if entry.part == "encoders" else phase or "forward"
            seconds = rates.seconds(entry.cost)
            sums[key] += seconds
            if key != "step" and seconds <= rates.launch_s * entry.cost.kernels:
                sums["launch"] += seconds
        for transfer in ledger.transfers:
            key = "encoders" if transfer.part == "encoders" else "forward"
            sums[key] += rates.transfer_s(transfer)
        keys = ("forward", "backward", "encoders", "launch")
        return cls(*(sums[key] / step.micro_steps for key in keys))


class Study:
    """Predictions for one config.

    Args:
        config: of the run.
        gpu: figures of the GPU.
        cluster: of the run.
        text_tokens: as in :class:`~showo_dist.plan.batch.AssumedSamples`.
        encoded: whether the shards hold image codes, so that no encoder runs.
    """

    def __init__(
        self,
        config: TrainConfig,
        gpu: Gpu,
        cluster: Cluster,
        text_tokens: int | None = None,
        encoded: bool = False,
    ) -> None:
        self.config, self.gpu, self.cluster = config, gpu, cluster
        self.samples = AssumedSamples(config, text_tokens)
        model = model_of_shapes(config)
        self.parameters = sum(p.numel() for p in model.parameters())
        self._update = update_of(model, config)
        self.work = Work.of(model)
        self._text_tokens, self._encoded = text_tokens, encoded
        self._passes: dict[Setting, Passes] = {}
        self._ledgers: dict[Setting, StepLedger] = {}
        self._profiles: dict[Setting, StepProfile] = {}

    def on(self, gpu: Gpu, cluster: Cluster) -> Study:
        """The study of another GPU, on as many ranks; both share all that was run on shapes."""
        assert cluster.ranks == self.cluster.ranks
        other = copy(self)
        other.gpu, other.cluster, other._passes = gpu, cluster, {}
        return other

    def one(self, setting: Setting) -> Prediction:
        """The prediction of one setting of scale 1; its engine runs once for all GPUs."""
        if setting not in self._profiles:
            samples = self.samples_of(setting)
            with fake_ranks(0, self.cluster.ranks):
                config = of_engine(setting.of(self.config), samples.micro_steps())
                batch = samples.micro_batch(TOKEN_MULTIPLE)
                self._profiles[setting] = EngineOfShapes(config, _CUDA).step(batch)
        return self.predict(setting, self._profiles[setting])

    def samples_of(self, setting: Setting) -> AssumedSamples:
        """The samples of a step, in the rows of a setting."""
        if setting.tokens_per_step is None:
            return self.samples
        return AssumedSamples(setting.of(self.config), self._text_tokens)

    def predictions(
        self, scales: Sequence[int], stages: Sequence[int] = ZERO_STAGES, both: bool = True
    ) -> Iterator[Prediction]:
        """Yield a prediction for each ZeRO stage, checkpointing and scale.

        Args:
            scales: factors of the config's batch sizes; with a token budget only 1 is predicted.
            stages: ZeRO stages.
            both: predict with and without checkpointing; else as in the config.
        """
        wanted = (False, True) if both else (self.config.model.gradient_checkpointing,)
        if self.config.training.tokens_per_step is not None:
            scales = [1]
        for stage in stages:
            for checkpointing in wanted:
                yield from self._of_engine(Setting(stage, checkpointing, 1), scales)

    def _of_engine(self, setting: Setting, scales: Sequence[int]) -> Iterator[Prediction]:
        self.passes(setting)
        with fake_ranks(0, self.cluster.ranks):
            config = of_engine(setting.of(self.config), self.samples.micro_steps())
            engine = EngineOfShapes(config, _CUDA)
            for scale in scales:
                batch = self.samples.micro_batch(TOKEN_MULTIPLE, scale)
                profile = engine.step(batch)
                yield self.predict(replace(setting, scale=scale), profile)

    def passes(self, setting: Setting) -> Passes:
        """Seconds of a micro-step of scale 1; the first call must be outside of any group."""
        # Of all stages the same; ZeRO-0's autocast cannot run on shapes.
        key = replace(setting, zero_stage=2, scale=1)
        if key not in self._passes:
            if key not in self._ledgers:
                self._ledgers[key] = self._ledger(key.of(self.config))
            self._passes[key] = Passes.of(self._ledgers[key], self.gpu.rates)
        return self._passes[key]

    def _ledger(self, config: TrainConfig) -> StepLedger:
        """The ledger of a step with one micro-step, or with all rows of a token budget."""
        if config.training.tokens_per_step is None:
            config.training.gradient_accumulation_steps = 1
        return ledger_of_step(config, self._text_tokens, encoded=self._encoded)

    def compute(self, setting: Setting) -> Compute:
        """Seconds of compute of a step with a setting."""
        rows = self.samples_of(setting).rows(TOKEN_MULTIPLE, setting.scale)
        shares = self.cluster.ranks if setting.zero_stage else 1
        passes = self.passes(setting)
        batches = setting.scale * len(rows)
        # Muon multiplies large matrices, in bf16.
        products = on_curve(self.gpu.rates.products[torch.bfloat16], 2048)
        update_s = self._update.bytes / self.gpu.memory_rate + self._update.flops / products
        return Compute(
            forward_s=passes.forward_s * batches,
            backward_s=passes.backward_s * batches,
            encoders_s=passes.encoders_s * batches,
            optimizer_s=update_s / shares,
            useful_flops=sum(map(self.work.flops, rows)),
            launch_s=passes.launch_s * batches,
        )

    def predict(self, setting: Setting, profile: StepProfile) -> Prediction:
        """Add time and traffic on this study's cluster to a profile."""
        rows = self.samples_of(setting).rows(TOKEN_MULTIPLE, setting.scale)
        compute = self.compute(setting)
        time = step_time(compute, profile.collectives, self.cluster)
        ranks, backend = self.cluster.ranks, self.cluster.backend
        return Prediction(
            setting,
            profile,
            compute,
            time,
            step_bytes(profile.collectives, ranks, backend),
            sum(row.real_tokens for row in rows),
            time.mfu(compute, self.gpu),
        )
