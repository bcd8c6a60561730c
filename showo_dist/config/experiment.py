"""Sections ``experiment``, ``wandb``, ``logging``: what a run is called, keeps and reports.

Section ``fault``: what a run does about ranks, numbers and machines that go wrong.

Section ``lora``: small trained matrices beside frozen ones, for one small GPU.

Section ``inference``: what the published demo scripts take on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class ExperimentConfig:
    """Name and folder of a run, and how often it saves, evaluates, draws and logs."""

    project: str = "showo"
    """wandb project."""
    name: str = "showo"
    """Name of the run, as wandb shows it."""
    output_dir: str = "runs/showo"
    """Folder of the run: checkpoints, metrics, images, resolved config."""
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
    """Optimizer steps between two image grids; 0: never."""
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


@dataclass(kw_only=True)
class FaultConfig:
    """Dead, hung and slow ranks; steps that are not finite."""

    timeout_s: float = 300.0
    """Seconds within which the other ranks stop, with one line and exit code 76, once a rank is dead,
    frozen or does not move. Phases that may take long (setup, the first step, saving, images) have
    `distributed.timeout_s` to move, but must be alive all the same. 0: nobody watches."""
    max_nonfinite_in_a_row: int = 10
    """Steps whose loss or gradient is not finite are skipped on all ranks; after this many in a row
    the run stops with exit code 77."""
    slow_factor: float = 1.5
    """A rank whose own time per step is this many times the median of the others is named in
    `events.jsonl`; 0: never."""


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, through `peft`): the weights that a run starts from stay as they are."""

    rank: int = 0
    """Rank of the adapters; 0: no LoRA, all weights are trained."""
    alpha: float | None = None
    """The adapters' product is scaled by `alpha / rank`; null: by 1."""
    dropout: float = 0.0
    """Dropout on the adapters' input, 0 to below 1. Above 0 the curve depends on how samples are
    spread over ranks."""
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    )
    """Names of the blocks' linear layers that get an adapter."""
    train_embeddings: bool = False
    """Also train the whole embedding table."""
    train_head: bool = False
    """Also train the whole output head."""
    train_projector: bool = True
    """Also train the CLIP projector, where there is one."""


@dataclass(kw_only=True)
class InferenceConfig:
    """One call of the inference tools. Several texts in one are separated by ``' *** '``."""

    mode: Literal["t2i", "inpainting", "extrapolation", "mmu"] = "t2i"
    """What to do."""
    prompt: str | None = None
    """Prompt of inpainting; prompts of extrapolation, one per step."""
    image_path: str | None = None
    """Image to inpaint or extrapolate."""
    inpainting_mask_path: str | None = None
    """Mask image: white is drawn anew."""
    extra_direction: str | None = None
    """Directions of extrapolation, one per step: left, right, up, down."""
    offset: int = 0
    """Code columns (rows) by which the extrapolated half is larger than half an image."""
    mmu_image_root: str | None = None
    """Folder with the images that are asked about."""
    question: str | None = None
    """Questions asked about each image."""
    top_k: int = 1
    """Answer tokens are sampled among the k most likely; 1: always the most likely."""
    temperature: float = 1.0
    """Temperature of answer sampling, above 0."""
    max_new_tokens: int = 100
    """Longest answer in tokens."""
    samples: int = 1
    """Images per prompt, 1 or more."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; each gives every image once more. A seed and the image's index decide its random numbers."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the transformer; `auto`: bf16 on a GPU that has it, fp32 on a CPU."""
