"""Run the training step of a config, from packing to the update, under a ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_data import MicroBatch, Sample
from showo_dist.config import TrainConfig, active_flows
from showo_dist.models import backbone, showo
from showo_dist.models.encoders import ClipTower, Encoders
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.config import MAGVITv2Config
from showo_dist.plan.attention import FusedAttention
from showo_dist.plan.batch import AssumedSamples
from showo_dist.plan.engine_step import EngineOfShapes, as_if, engine_module, fake_ranks
from showo_dist.plan.ledger import Ledger
from showo_dist.plan.shapes import META
from showo_dist.sequences import TOKEN_MULTIPLE, Sequence
from showo_dist.training import batches, step
from showo_dist.training.batches import PackedBatches, row_steps
from showo_dist.training.metrics import Work
from showo_dist.training.rows import of_engine
from showo_dist.training.step import Stepper
from showo_kernels import transfer


@dataclass(frozen=True)
class StepLedger:
    """The ledger of one optimizer step of one rank.

    Attributes:
        ledger: its entries.
        tokens: tokens of the step, without padding.
        micro_steps: of the step.
        layers: of the model.
        useful_flops: that count for MFU.
    """

    ledger: Ledger
    tokens: int
    micro_steps: int
    layers: int
    useful_flops: float


class _Assumed:
    """Makes the sequences of every micro-batch that is read: what a plan assumes instead of samples."""

    def __init__(self, samples: AssumedSamples) -> None:
        self._samples, self.vocabulary = samples, samples.vocabulary

    def __call__(self, _: MicroBatch) -> list[Sequence]:
        return self._samples.sequences()


@contextmanager
def parts_of(ledger: Ledger, model: torch.nn.Module) -> Iterator[None]:
    """Attribute operations to a model's modules, to attention, and to the attention's plan."""
    attend, build = backbone.attend, batches.build_plan

    def attending(*args: Any, **kwargs: Any) -> Any:
        with ledger.part("attention"):
            return attend(*args, **kwargs)

    def planning(*args: Any, **kwargs: Any) -> Any:
        with ledger.part("planning"):
            return build(*args, **kwargs)

    with (
        patch.object(backbone, "attend", attending),
        patch.object(showo, "build_plan", planning),
        patch.object(batches, "build_plan", planning),
        patch.object(transfer, "PINNING", {"meta"} if ledger.apart else set()),
        _late_reads(ledger),
        ledger.following(model),
    ):
        yield


@contextmanager
def _late_reads(ledger: Ledger) -> Iterator[None]:
    """A value that was copied without waiting makes the host wait if nothing did between copy and reading."""
    start, read = step.Readout.__init__, step.Readout.numbers
    waits: dict[int, int] = {}

    def copied(self: step.Readout, values: Tensor) -> None:
        start(self, values)
        waits[id(self)] = ledger.waits

    def waited(self: step.Readout) -> list[float]:
        if ledger.apart and waits[id(self)] == ledger.waits:
            ledger.transfer("value", 0, True, True)
        return read(self)

    with (
        patch.object(step.Readout, "__init__", copied),
        patch.object(step.Readout, "numbers", waited),
    ):
        yield


def fuse(ledger: Ledger) -> None:
    """Count what compiled blocks fuse by their schedules; see :meth:`Ledger.fuse`."""
    with patch.object(backbone, "attend", _opaque):
        ledger.fuse()


def _opaque(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention as a compiled block contains it: one operation that nothing is fused with."""
    return FusedAttention.apply(query, key, value, None, query.shape[:3].numel(), 0, True)


def _accelerator_of_shapes() -> Any:
    """DeepSpeed's name of its device: what it moves there stays there; what goes to the CPU leaves it."""
    from deepspeed.accelerator import get_accelerator

    return patch.multiple(
        get_accelerator(),
        current_device_name=lambda: "meta",
        device_name=lambda *_: "meta",
    )


# CLIP ViT-L/14-336, the tower of the published configs.
CLIP_SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def encoders_of_shapes(config: TrainConfig) -> Encoders:
    """The frozen encoders of the published configs on the meta device."""
    with META:
        vq = MAGVITv2(MAGVITv2Config(resolution=config.dataset.preprocessing.resolution))
        clip = CLIPVisionModel(CLIPVisionConfig(**CLIP_SIZES))
    tower = ClipTower(clip) if config.model.showo.w_clip_vit else None
    return Encoders(
        vq.eval(),
        tower,
        down_scale=config.training.down_scale,
        resize_back=config.training.resize_back,
        precision=config.model.encoder_dtype,
    )


def encode_micro_batch(encoders: Encoders, config: TrainConfig) -> None:
    """Encode the images of one micro-batch, flow by flow as training does."""
    side = config.dataset.preprocessing.resolution
    captions = config.dataset.und_type == "captioning"  # which training makes with codes
    for name, flow in active_flows(config).items():
        if name == "lm":
            continue
        image = torch.zeros(3, side, side, device=META)
        images = flow.batch_size * (config.dataset.max_images if name == "mmu" else 1)
        samples = [Sample(name, 0, "", image_3HW=image, source_3HW=image) for _ in range(images)]
        conversation = name == "mmu" and not captions
        if not (conversation and encoders.clip):
            encoders.codes(samples)
        if (conversation or name == "recon") and encoders.clip:
            encoders.features(samples)
        elif name == "recon":
            encoders.condition_codes(samples)
        elif name == "edit":
            encoders.source_codes(samples)


def _windows(config: TrainConfig, samples: AssumedSamples, model: Any) -> PackedBatches:
    """The training loop's own window of one optimizer step, of assumed samples."""
    read = config.training.gradient_accumulation_steps
    return PackedBatches(
        cast(Any, iter(MicroBatch({}) for _ in range(read))),
        cast(Any, _Assumed(samples)),
        META,
        read,
        model.feature_width,
        TOKEN_MULTIPLE,
        rows=None if config.training.tokens_per_step is None else samples.micro_steps(),
        steps=row_steps(config, model),
        attention=model.attention,
        windows=1,
    )


def ledger_of_step(
    config: TrainConfig, text_tokens: int | None = None, ranks: int = 1, encoded: bool = True
) -> StepLedger:
    """The ledger of the config's optimizer step on a GPU, from the packing of its window on.

    Args:
        config: of the run.
        text_tokens: as in :class:`~showo_dist.plan.batch.AssumedSamples`.
        ranks: of the run; they share the update at ZeRO 1 to 3.
        encoded: whether the shards hold codes and features, so that no encoder runs.
    """
    device = torch.device("cuda")
    samples = AssumedSamples(config, text_tokens)
    read, micro_steps = config.training.gradient_accumulation_steps, samples.micro_steps()
    # Made before the ledger opens: a run makes them once and not in every step.
    encoders = None if encoded else encoders_of_shapes(config)
    with fake_ranks(0, ranks):
        engine = EngineOfShapes(of_engine(config, micro_steps), device, every_micro_step=True)
        ledger = Ledger(device, ahead=config.training.pack_ahead is not False)
        stepper = Stepper(
            engine_module().DeepSpeedEngine(
                engine.engine, config.distributed.zero_stage, config.training.ema.decay
            ),
            {name: flow.coefficient for name, flow in active_flows(config).items()},
            config.training.loss_normalization,
            META,
            enter=ledger.enter,
        )
        windows = _windows(config, samples, engine.engine.module)
        with as_if(device, engine.shapes), ledger, parts_of(ledger, engine.engine.module):
            ledger.enter("read")
            with ledger.part("encoders"):
                if encoders is not None:
                    for _ in range(read):
                        encode_micro_batch(encoders, config)
            with ledger.part("packing"), ledger.host():
                window, _ = next(windows)
            with _accelerator_of_shapes():
                stepper(window)
        fuse(ledger)
    model = engine.engine.module
    work = Work.of(model)
    return StepLedger(
        ledger,
        sum(batch.real_tokens for batch in window),
        micro_steps,
        model.config.num_hidden_layers,
        sum(work.flops(batch) for batch in window),
    )
