"""Sections ``experiment``, ``wandb``, ``logging``: what a run is called, keeps and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class ExperimentConfig:
    """Name and folder of a run, and how often it saves, evaluates, draws and logs."""

    project: str = "showo"
    """wandb project."""
    name: str = "showo"
    """Name of the run, as wandb shows it."""
    output_dir: str = "runs/showo"
    """Folder of the run: checkpoints, metrics, pictures, resolved config."""
    init_from: str | None = None
    """Weights to start from: a checkpoint of ours, a released folder or a hub id. Goes before
    `model.showo.load_from_showo`; null leaves the choice to that key."""
    init_optimizer: bool = False
    """Also take AdamW's moments and step count from `init_from`, which must be a checkpoint of ours.
    The learning-rate schedule and the data start anew."""
    resume_from_checkpoint: bool | str | None = "latest"
    """`latest`: go on from the newest complete checkpoint in `output_dir`, if there is one; a path:
    from that one; false: start anew."""
    resume_fallback: bool = False
    """With `latest`: when the newest checkpoint is damaged, say so and go on from the one before."""
    allow_batch_change: bool = False
    """Go on although the global batch (ranks × accumulation × batch size) of a flow is not the
    checkpoint's."""
    save_every: int = 10000
    """Optimizer steps between two checkpoints; 0: only at the end."""
    eval_every: int = 2500
    """Accepted for published files and without effect: evaluation is a command of its own."""
    generate_every: int = 1000
    """Optimizer steps between two picture grids; 0: never."""
    log_every: int = 50
    """Optimizer steps between two lines of metrics, at least 1."""
    log_grad_norm_every: int = 500
    """Optimizer steps between two logs of the gradient norm of every parameter; 0: never."""
    keep_last: int = 3
    """Checkpoints kept; older ones are removed after a new one is complete. 0: keep all."""
    keep_every: int = 0
    """Checkpoints at multiples of so many optimizer steps are kept for ever, besides `keep_last`; 0:
    none."""
    save_asynchronously: bool = True
    """Checkpoints are written in the background while training goes on; false: training waits."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """When a checkpoint cannot be written (disk full, no permission): say so, keep the older ones and
    train on, or stop. A run whose last state cannot be written ends with an error either way."""
    max_train_examples_t2i: int = 20_000_000
    """Accepted for published files and without effect: streams are endless,
    `training.max_train_steps` decides."""
    max_train_examples_mmu: int = 40_000_000
    """Accepted for published files and without effect, as `max_train_examples_t2i`."""


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when this machine is logged in, else offline (files below `output_dir`)."""
    entity: str | None = None
    """Team or user; null: the default of the account."""
    run_id: str | None = None
    """Run to go on with; null: a new one, or the one that the resumed checkpoint names."""
    resume: bool | str | None = "auto"
    """Handed to `wandb.init(resume=...)` when there is a run id: auto, allow, must, never, true or
    false."""


@dataclass(kw_only=True)
class LoggingConfig:
    """Metrics written by the run itself."""

    jsonl: str | None = "metrics.jsonl"
    """File in `output_dir` that gets one JSON object per logged step; null: no file."""
