"""Sections ``dataset`` (published keys) and ``data`` (how streams are read)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class DatasetParams:
    """Where the data of each flow lies, and how it is loaded."""

    train_t2i_shards_path_or_url: Any = None
    """Text-to-image data: a path, URL or brace pattern of tar shards, or a list of them, which is
    pooled; or weighted sources, `[{urls: …, weight: 2.0}, …]`."""
    train_mmu_shards_path_or_url: Any = None
    """Understanding data (captions, conversations), as above."""
    train_lm_shards_path_or_url: Any = None
    """Plain text, as above."""
    train_recon_shards_path_or_url: Any = None
    """Images for the reconstruction flow, as above; null with `recon_type: journeydb`: the
    text-to-image data."""
    add_caption_prompt: bool = True
    """Ask for the caption with a prompt drawn from a list (captioning only)."""
    external_caption_path: str | None = None
    """SA-1B captions kept outside the shards; null: captions are members of the shards."""
    external_journeydb_caption_path: str | None = None
    """JourneyDB captions: refused in training; the message names the command that puts them into shards."""
    external_laion12m_caption_path: str | None = None
    """LAION-12M captions, as above."""
    external_cc12m_caption_path: str | None = None
    """CC12M captions, as above."""
    validation_prompts_file: str | None = None
    """Text file with one prompt per line, for the images of `experiment.generate_every`; null:
    built-in prompts."""
    shuffle_buffer_size: int = 1000
    """Samples that are shuffled among each other, per stream, unless `data.window` says
    otherwise."""
    num_workers: int = 0
    """Loader processes per rank; 0: load in the training process."""
    batch_size: int | None = None
    """Accepted for published files and without effect (`training.batch_size*` decide)."""
    resolution: int = 256
    """Side of the images in pixels; equals `dataset.preprocessing.resolution`."""
    pin_memory: bool = True
    """Page-locked host memory, for faster copies to a GPU."""
    persistent_workers: bool = True
    """Accepted for published files and without effect: streams are endless, and so are their loaders."""
    wds_seed: int | None = None
    """Seed of the data order; null: `training.seed`."""


@dataclass(kw_only=True)
class PreprocessingConfig:
    """From an image and its text to tensors."""

    max_seq_length: int = 128
    """Text budget M in tokens (docs/specification.md, section 3)."""
    resolution: int = 256
    """Side of the images in pixels."""
    center_crop: bool = False
    """Accepted for published files; images are always resized on the short side and cropped at
    the centre."""
    random_flip: bool = False
    """Accepted for published files; images are never mirrored (captions say left and right)."""


@dataclass(kw_only=True)
class DatasetConfig:
    """Which kind of data each flow reads."""

    gen_type: Literal["t2i", "imagenet1k"] = "t2i"
    """Text-to-image data: captioned shards either way; class folders are refused, naming the converter."""
    und_type: Literal["captioning", "llava_pretrain", "llava_tuning"] = "captioning"
    """Understanding data: captioned shards, or LLaVA conversations of the one or the other
    phase."""
    recon_type: Literal["mid", "journeydb"] = "mid"
    """Reconstruction data: `mid` squashes images to a square, `journeydb` resizes and crops
    them."""
    combined_loader_mode: Literal["min_size", "max_size_cycle", "max_size", "sequential"] = (
        "max_size_cycle"
    )
    """Accepted for published files and without effect: every stream is endless."""
    add_system_prompt: bool = False
    """System prompt before LLaVA conversations (docs/specification.md, sections 3 and 7)."""
    params: DatasetParams = field(default_factory=DatasetParams)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)


@dataclass(kw_only=True)
class DataConfig:
    """Order and safety of the sample streams."""

    streams: int = 8
    """Canonical streams K per data set. Part of the data order: keep it when a run is resumed."""
    window: int | None = None
    """Samples shuffled among each other in a stream; null: `dataset.params.shuffle_buffer_size`.
    Part of the order."""
    max_bad_fraction: float = 0.05
    """Unreadable samples that a run puts up with, as a fraction of those that it tried on all ranks
    (0 to 1); fewer than this fraction of 200 never stop it."""
    sampling: Literal["exact", "resampled"] = "exact"
    """`exact`: every sample once per epoch, whatever the ranks and stops; `resampled`: webdataset's
    draw of shards with replacement (published), which needs no index and resumes with new draws."""
    cache_dir: str | None = None
    """Folder for indices of remote or read-only shards, and for cached shards; null: `showo-dist` in
    the user's cache folder."""
    cache_gb: float = 0.0
    """Gigabytes of remote shards to keep in `data.cache_dir`, per node; 0: none, samples are read by
    range requests."""
    retries: int = 5
    """How often a failed request to a web server is made again, with growing pauses."""
    allow_pipe: bool = False
    """Allow `pipe:` URLs. They run shell commands: only for configs that you wrote."""
