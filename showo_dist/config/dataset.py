"""Sections ``dataset`` (published keys) and ``data`` (order and safety of the sample streams)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from showo_dist.config.hints import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION


@dataclass(kw_only=True)
class DatasetParams:
    """Paths of the data of each flow, and how it is loaded."""

    train_t2i_shards_path_or_url: Any = None
    """Text-to-image data: a path, URL or brace pattern of tar shards, or a list of them, which are
    read as one data set; or weighted sources, `[{urls: …, weight: 2.0}, …]`."""
    train_mmu_shards_path_or_url: Any = None
    """Understanding data (captions, conversations), as above."""
    train_lm_shards_path_or_url: Any = None
    """Plain text, as above."""
    train_recon_shards_path_or_url: Any = None
    """Images for the reconstruction flow, as above; null with `recon_type: journeydb`: the
    text-to-image data."""
    train_edit_shards_path_or_url: Any = None
    """Triples of source image, instruction and target image for the edit flow, as above."""
    validation_t2i_shards_path_or_url: Any = None
    """Held-out data of the text-to-image flow, as above; null: no validation loss of this flow."""
    validation_mmu_shards_path_or_url: Any = None
    """Held-out understanding data, as above."""
    validation_lm_shards_path_or_url: Any = None
    """Held-out plain text, as above."""
    validation_recon_shards_path_or_url: Any = None
    """Held-out images for reconstruction, as above."""
    validation_edit_shards_path_or_url: Any = None
    """Held-out edits, as above."""
    validation_samples: Annotated[int, AT_LEAST_ONE] = 256
    """Held-out samples per flow, one shard after the other in a fixed order; fewer where there are
    fewer."""
    add_caption_prompt: bool = True
    """Put a prompt from `description_prompts_file` before the caption (captioning only)."""
    description_prompts_file: str | None = None
    """Text file with requests for a description, one per line: one is drawn for each image of the
    reconstruction flow, and of captioning; null: the package's list of 380."""
    external_caption_path: str | None = None
    """Folder of SA-1B captions outside the shards; null: captions are members of the shards."""
    external_journeydb_caption_path: str | None = None
    """JourneyDB captions: refused in training; the message names the command that puts them into shards."""
    external_laion12m_caption_path: str | None = None
    """LAION-12M captions, as above."""
    external_cc12m_caption_path: str | None = None
    """CC12M captions, as above."""
    validation_prompts_file: str | None = None
    """Text file with one prompt per line, for the images of `experiment.generate_every`; null:
    built-in prompts."""
    shuffle_buffer_size: Annotated[int, AT_LEAST_ONE] = 1000
    """Size of the shuffle window of a stream, in samples; `data.window` takes precedence."""
    num_workers: Annotated[int, AT_LEAST_ZERO] = 0
    """Loader processes per rank; 0: load in the training process."""
    batch_size: int | None = None
    """Without effect: `training.batch_size_*` decide."""
    resolution: Annotated[int, AT_LEAST_ONE] = 256
    """Side of the images in pixels; equals `dataset.preprocessing.resolution`."""
    pin_memory: bool = True
    """Without effect: packed batches go to a GPU through page-locked memory."""
    persistent_workers: bool = True
    """Without effect: streams are endless, so loader processes always persist."""
    wds_seed: int | None = None
    """Seed of the data order; null: `training.seed`."""


@dataclass(kw_only=True)
class PreprocessingConfig:
    """Sizes of text and images."""

    max_seq_length: Annotated[int, AT_LEAST_ONE] = 128
    """Text budget M in tokens (docs/specification.md, section 3)."""
    resolution: Annotated[int, AT_LEAST_ONE] = 256
    """Side of the images in pixels."""
    center_crop: bool = False
    """Without effect: images are always resized on the short side and cropped at the centre."""
    random_flip: bool = False
    """Without effect: images are never mirrored, because captions say left and right."""


@dataclass(kw_only=True)
class DatasetConfig:
    """Which kind of data each flow reads."""

    gen_type: Literal["t2i", "imagenet1k"] = "t2i"
    """Text-to-image data: captioned shards either way; class folders are refused, naming the converter."""
    und_type: Literal["captioning", "llava_pretrain", "llava_tuning"] = "captioning"
    """Understanding data: captioned shards, or LLaVA conversations of the pre-training or the tuning
    phase."""
    recon_type: Literal["mid", "journeydb"] = "mid"
    """Reconstruction data: `mid` squashes images to a square, `journeydb` resizes and crops
    them."""
    combined_loader_mode: Literal["min_size", "max_size_cycle", "max_size", "sequential"] = (
        "max_size_cycle"
    )
    """Without effect: streams are endless."""
    add_system_prompt: bool = False
    """System prompt before LLaVA conversations (docs/specification.md, sections 3 and 7)."""
    max_images: Annotated[int, AT_LEAST_ONE] = 1
    """Most numbered images of a conversation or interleaved document (docs/data.md); a sample with more is
    skipped. The longest understanding sequence grows with it."""
    chat_template: bool = False
    """Lay out conversations and questions by the tokenizer's own chat template instead of `USER: …
    ASSISTANT:`; needs `und_type: llava_pretrain` or `llava_tuning` (docs/backbones.md)."""
    params: DatasetParams = field(default_factory=DatasetParams)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)


@dataclass(kw_only=True)
class DataConfig:
    """Order and safety of the sample streams."""

    streams: Annotated[int, AT_LEAST_ONE] = 8
    """Canonical streams K per data set. Part of the data order: keep it when a run is resumed."""
    window: Annotated[int | None, AT_LEAST_ONE] = None
    """Size of the shuffle window of a stream, in samples; null: `dataset.params.shuffle_buffer_size`.
    Part of the data order."""
    max_bad_fraction: Annotated[float, FRACTION] = 0.05
    """Largest tolerated fraction of unreadable samples, over all ranks (0 to 1); fewer than this fraction
    of 200 never stop a run."""
    sampling: Literal["exact", "resampled"] = "exact"
    """`exact`: every sample once per epoch, whatever the ranks and stops; `resampled`: webdataset's
    sampling of shards with replacement (published), which needs no index and resumes with new samples."""
    cache_dir: str | None = None
    """Folder for indices of remote or read-only shards, and for cached shards; null: `showo-dist` in
    the user's cache folder."""
    cache_gb: Annotated[float, AT_LEAST_ZERO] = 0.0
    """Gigabytes of remote shards to keep in `data.cache_dir`, per node; 0: none, samples are read with
    range requests."""
    retries: Annotated[int, AT_LEAST_ZERO] = 5
    """Retries of a failed request to a web server, with growing pauses."""
    timeout_s: Annotated[float, ABOVE_ZERO] = 60.0
    """Seconds that a sample may wait for its remote shard, all requests, retries and pauses together; of a
    copy into the cache, each part of 8 MB."""
    allow_pipe: bool = False
    """Allow `pipe:` URLs. They run shell commands: only for configs that you wrote."""
