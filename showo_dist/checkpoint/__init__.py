"""Checkpoints: every rank writes its own part in the background; one rename makes them all visible.

A checkpoint is a folder ``checkpoint-STEP``:

``model-*.safetensors``, ``optimizer-*.safetensors``
    one of each per rank: ranges of fp32 weights and of the optimizer's moments, by parameter name.
``ema-*.safetensors``
    the same of the averaged weights, where ``training.ema`` is on.
``tensors.json``
    where each range of each tensor is stored.
``state.json``, ``config.yaml``, ``config.json``
    step and stream positions, the run's config, the model's sizes.
``manifest.json``
    size and SHA-256 of every other file, and of itself.

:class:`CheckpointReader` reads such a folder on any number of ranks.
:class:`showo_dist.checkpoint.writer.CheckpointWriter` writes it during training.
"""

from showo_dist.checkpoint.folders import complete_checkpoints, folder_of, is_checkpoint
from showo_dist.checkpoint.reader import CheckpointReader, Resume, find_resume
from showo_dist.checkpoint.state import CONFIG, SOURCES, BatchShape, RunState, versions

__all__ = [
    "CONFIG",
    "SOURCES",
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
