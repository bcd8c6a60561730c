"""Data pipeline: WebDataset shards in, samples out. It knows no model and no process group."""

from showo_data.images import clip_transform, vq_transform
from showo_data.loader import Loader, MicroBatch, build_loader
from showo_data.samples import BadSamples, FlowSpec, Sample, Skipped, Weighted
from showo_data.sources import Source
from showo_data.streams import CanonicalStream

__all__ = [
    "BadSamples",
    "CanonicalStream",
    "FlowSpec",
    "Loader",
    "MicroBatch",
    "Sample",
    "Skipped",
    "Source",
    "Weighted",
    "build_loader",
    "clip_transform",
    "vq_transform",
]
