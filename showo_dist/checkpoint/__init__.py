"""Checkpoints: every rank writes its own part in the background; one rename makes all of it visible.

A checkpoint is a folder ``checkpoint-STEP``:

``model-*.safetensors``, ``optimizer-*.safetensors``
    one of each per rank: runs of fp32 weights and AdamW moments, by parameter name.
``tensors.json``
    which run of which tensor lies where.
``state.json``, ``config.yaml``, ``config.json``
    counters and stream positions, the run's config, the model's sizes.
``manifest.json``
    size and SHA-256 of every other file, and of itself.

Reading needs this folder alone, on any number of ranks: :class:`CheckpointReader`. Writing during training:
:class:`showo_dist.checkpoint.writer.CheckpointWriter`, which alone imports DeepSpeed.
"""

from showo_dist.checkpoint.folders import complete_checkpoints, folder_of, is_checkpoint
from showo_dist.checkpoint.reader import CheckpointReader
from showo_dist.checkpoint.resume import Resume, find_resume
from showo_dist.checkpoint.state import CONFIG, BatchShape, RunState, versions

__all__ = [
    "CONFIG",
    "BatchShape",
    "CheckpointReader",
    "Resume",
    "RunState",
    "complete_checkpoints",
    "find_resume",
    "folder_of",
    "is_checkpoint",
    "versions",
]
