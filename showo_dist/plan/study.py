"""Predict memory, traffic and time of a config on a cluster, for several settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_dist.config import TrainConfig, active_flows
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.config import MAGVITv2Config
from showo_dist.models.showo import build_showo
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, StepProfile, fake_ranks
from showo_dist.plan.timing import (
    ADAM_BYTES_PER_PARAMETER,
    MUON_BYTES_PER_PARAMETER,
    Cluster,
    Compute,
    Gpu,
    StepTime,
    Update,
    step_bytes,
    step_time,
)
from showo_dist.sequences import TOKEN_MULTIPLE, PackedBatch
from showo_dist.training.metrics import Work
from showo_dist.training.muon import by_muon, orthogonalisation_flops

ZERO_STAGES = (0, 1, 2, 3)
_CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Setting:
    """The keys that a plan varies.

    Attributes:
        zero_stage: 0 to 3.
        checkpointing: whether activations are recomputed in the backward pass.
        scale: factor of the config's batch sizes.
    """

    zero_stage: int
    checkpointing: bool
    scale: int

    def of(self, config: TrainConfig) -> TrainConfig:
        """Copy the config with this setting, except the batch sizes."""
        changed = deepcopy(config)
        changed.distributed.zero_stage = cast(Any, self.zero_stage)
        changed.model.gradient_checkpointing = self.checkpointing
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
    if config.optimizer.name == "adamw":
        return Update(ADAM_BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters()))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    matrices = [shape for name, shape in shapes.items() if by_muon(name, shape)]
    saved = ADAM_BYTES_PER_PARAMETER - MUON_BYTES_PER_PARAMETER
    total = ADAM_BYTES_PER_PARAMETER * sum(map(prod, shapes.values()))
    moved = total - saved * sum(map(prod, matrices))
    return Update(moved, orthogonalisation_flops(matrices, config.optimizer.muon.ns_steps))


def encoder_flops(config: TrainConfig) -> float:
    """FLOPs of the frozen encoders on one rank's micro-batch, if its images are not encoded ahead."""
    flows = active_flows(config)
    images = sum(flow.batch_size for name, flow in flows.items() if name != "lm")
    clip = config.model.showo.w_clip_vit
    understood = sum(flows[name].batch_size for name in ("mmu", "recon") if name in flows)
    # In CLIP models an mmu image needs no codes; else a recon sample's condition image needs codes as well.
    coded = images - (flows["mmu"].batch_size if clip and "mmu" in flows else 0)
    if "recon" in flows and not clip:
        coded += flows["recon"].batch_size
    total = coded * _vq_flops(config)
    return total + (understood * _clip_flops() if clip else 0.0)


def _flops_of(run: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def _vq_flops(config: TrainConfig) -> float:
    side = config.dataset.preprocessing.resolution
    with torch.device("meta"):
        tokenizer = MAGVITv2(MAGVITv2Config(resolution=side))
        pixels = torch.empty(1, 3, side, side)
    return _flops_of(lambda: tokenizer.encoder(pixels))


def _clip_flops() -> float:
    """FLOPs per image of CLIP ViT-L/14-336, the tower of the published configs."""
    sizes = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        tower = CLIPVisionModel(sizes)
        pixels = torch.empty(1, 3, 336, 336)
    return _flops_of(lambda: tower(pixels))


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
        self._encoder_flops = 0.0 if encoded else encoder_flops(config)

    def predictions(
        self, scales: Sequence[int], stages: Sequence[int] = ZERO_STAGES, both: bool = True
    ) -> Iterator[Prediction]:
        """Yield a prediction for each ZeRO stage, checkpointing and scale.

        Args:
            scales: factors of the config's batch sizes.
            stages: ZeRO stages.
            both: predict with and without checkpointing; else as in the config.
        """
        wanted = (False, True) if both else (self.config.model.gradient_checkpointing,)
        for stage in stages:
            for checkpointing in wanted:
                yield from self._of_engine(Setting(stage, checkpointing, 1), scales)

    def _of_engine(self, setting: Setting, scales: Sequence[int]) -> Iterator[Prediction]:
        with fake_ranks(0, self.cluster.ranks):
            engine = EngineOfShapes(setting.of(self.config), _CUDA)
            for scale in scales:
                batch = self.samples.micro_batch(TOKEN_MULTIPLE, scale)
                profile = engine.step(batch)
                yield self.predict(replace(setting, scale=scale), profile, batch)

    def predict(self, setting: Setting, profile: StepProfile, batch: PackedBatch) -> Prediction:
        """Add time and traffic on this study's cluster to a profile."""
        micro_steps = self.config.training.gradient_accumulation_steps
        shares = self.cluster.ranks if setting.zero_stage else 1
        compute = Compute.on(
            self.gpu,
            self.work.flops(batch) * micro_steps,
            Update(self._update.bytes / shares, self._update.flops / shares),
            setting.checkpointing,
            self._encoder_flops * setting.scale * micro_steps,
        )
        time = step_time(compute, profile.collectives, self.cluster)
        ranks, backend = self.cluster.ranks, self.cluster.backend
        return Prediction(
            setting,
            profile,
            compute,
            time,
            step_bytes(profile.collectives, ranks, backend),
            batch.real_tokens * micro_steps,
            time.mfu(compute, self.gpu),
        )
