"""Read the images of shards as tensors, for training and evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from showo_data import FlowSpec, MicroBatch, Sample, Skipped, Source, build_loader, vq_transform
from showo_data.shards import Storage
from showo_dist.runtime.ranks import Ranks
from showo_dist.tokenizer.config import TokenizerConfig

FLOW = "image"


@dataclass
class ImageBatch:
    """This rank's images of one step.

    Attributes:
        pixels_B3HW: float32 in [-1, 1], on the CPU.
        read: number of images. With 0 the tensor holds one grey image of weight 0, because every rank must
            run the network.
        skipped: samples that could not be read.
    """

    pixels_B3HW: Tensor
    read: int
    skipped: list[Skipped]


def as_urls(shards: Any) -> tuple[str, ...]:
    """A config's shards as a tuple of paths or brace patterns."""
    return (shards,) if isinstance(shards, str) else tuple(str(shard) for shard in shards)


def image_flow(config: TokenizerConfig, shards: Any, batch: int) -> FlowSpec:
    """Describe a stream of images from ``shards``, transformed for the tokenizer.

    Args:
        config: of the run.
        shards: a path or brace pattern, or a list of them.
        batch: images per batch.
    """
    return FlowSpec(
        flow=FLOW,
        kind="image",
        urls=as_urls(shards),
        batch=batch,
        transform=vq_transform(config.model.resolution),
        encoded=(),
        seed=config.training.seed,
        streams=config.dataset.streams,
        window=config.dataset.window,
        storage=Storage(
            cache_dir=config.dataset.cache_dir,
            cache_gb=config.dataset.cache_gb,
            retries=config.dataset.retries,
            timeout_s=config.dataset.timeout_s,
            allow_pipe=config.dataset.allow_pipe,
        ),
    )


def training_batches(config: TokenizerConfig, ranks: Ranks, position: int) -> Iterator[ImageBatch]:
    """Yield this rank's share of each global batch, from a position of the stream on, without end.

    Raises:
        ValueError: the global batch is not a multiple of the number of ranks.
    """
    size = config.training.batch_size
    if size % ranks.world:
        raise ValueError(
            f"training.batch_size = {size}: expected a multiple of {ranks.world}, the number of ranks"
        )
    loader = build_loader(
        [image_flow(config, config.dataset.shards, size // ranks.world)],
        rank=ranks.rank,
        world=ranks.world,
        start_positions={FLOW: position},
        num_workers=config.dataset.num_workers,
    )
    return (_batch(micro_batch, config.model.resolution) for micro_batch in loader)


def _batch(micro_batch: MicroBatch, resolution: int) -> ImageBatch:
    images = [_image(sample) for sample in micro_batch.samples[FLOW]]
    pixels = torch.stack(images) if images else torch.zeros(1, 3, resolution, resolution)
    return ImageBatch(pixels, len(images), micro_batch.skipped)


def _image(sample: Sample) -> Tensor:
    assert sample.image_3HW is not None, "no member replaces the image in this flow"
    return sample.image_3HW


def validation_images(config: TokenizerConfig) -> Tensor:
    """Read the images of every evaluation, (B, 3, H, W) in [-1, 1]; unreadable ones are left out.

    Raises:
        ValueError: none of them can be read.
    """
    shards = config.dataset.validation_shards or config.dataset.shards
    source = Source(image_flow(config, shards, 1))
    wanted = range(min(config.dataset.validation_images, len(source)))
    images = [_image(sample) for i in wanted if isinstance(sample := source[i], Sample)]
    if not images:
        raise ValueError(f"none of the images to evaluate on can be read: {list(as_urls(shards))}")
    return torch.stack(images)
