"""Sections of the run itself: ``experiment``, ``wandb``, ``logging``, ``fault``, ``lora``, ``inference``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from showo_dist.config.hints import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, BELOW_ONE


@dataclass(kw_only=True)
class ExperimentConfig:
    """Name and folder of a run, and how often it saves, validates, generates images and logs."""

    project: str = "showo"
    """wandb project."""
    name: str = "showo"
    """Name of the run, as wandb shows it."""
    output_dir: str = "runs/showo"
    """Folder of the run: checkpoints, which hold the resolved config, metrics and images."""
    init_from: str | None = None
    """Weights to start from: a checkpoint of this project, a released folder or a hub id. Takes precedence
    over `model.showo.load_from_showo`; null leaves the choice to that key."""
    init_optimizer: bool = False
    """Also load the optimizer's moments and step count from `init_from`, a checkpoint of this project.
    The learning-rate schedule and the data start at step 0."""
    resume_from_checkpoint: bool | str | None = "latest"
    """`latest`: resume from the newest complete checkpoint in `output_dir`, if there is one; a path:
    from that one; false: start at step 0."""
    resume_fallback: bool = False
    """With `latest`: when the newest checkpoint is damaged, log it and resume from the one before."""
    allow_batch_change: bool = False
    """Resume even if the global batch (ranks × accumulation × batch size) of a flow differs from the
    checkpoint's."""
    allow_data_change: bool = False
    """Resume even if the data order of a flow differs from the checkpoint's (seed, streams, window, mixture;
    shards added, removed, reordered or rewritten). Positions then continue in the new order: samples may
    repeat or be left out."""
    save_every: Annotated[int, AT_LEAST_ZERO] = 10000
    """Optimizer steps between two checkpoints; 0: only at the end."""
    eval_every: Annotated[int, AT_LEAST_ZERO] = 2500
    """Optimizer steps between two validations, besides the one after the last step; 0: never. Each flow with
    `dataset.params.validation_*` data gets its held-out loss."""
    generate_every: Annotated[int, AT_LEAST_ZERO] = 1000
    """Optimizer steps between two image grids; 0: never."""
    log_every: Annotated[int, AT_LEAST_ONE] = 50
    """Optimizer steps between two lines of metrics, at least 1."""
    log_grad_norm_every: Annotated[int, AT_LEAST_ZERO] = 500
    """Optimizer steps between two logs of the gradient norm of every parameter; 0: never."""
    keep_last: Annotated[int, AT_LEAST_ZERO] = 3
    """Checkpoints kept; older ones are removed after a new one is complete. 0: keep all."""
    keep_every: Annotated[int, AT_LEAST_ZERO] = 0
    """Checkpoints at multiples of this many optimizer steps are never removed; 0: `keep_last` decides."""
    save_asynchronously: bool = True
    """Checkpoints are written in the background while training goes on; false: training waits."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """When a checkpoint cannot be written (disk full, no permission): log it, keep the older ones and
    continue training, or stop. A run whose final state cannot be written ends with an error either way."""
    max_train_examples_t2i: int = 20_000_000
    """Without effect: streams are endless, `training.max_train_steps` decides."""
    max_train_examples_mmu: int = 40_000_000
    """Without effect, as `max_train_examples_t2i`."""


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when this machine is logged in, else offline (files below `output_dir`)."""
    entity: str | None = None
    """Team or user; null: the default of the account."""
    run_id: str | None = None
    """Run to continue; null: a new one, or the one that the resumed checkpoint names."""
    resume: bool | str | None = "auto"
    """Passed to `wandb.init(resume=...)` when there is a run id: auto, allow, must, never, true or
    false."""


@dataclass(kw_only=True)
class LoggingConfig:
    """Metrics written by the run itself."""

    jsonl: str | None = "metrics.jsonl"
    """File in `output_dir` that gets one JSON object per logged step; null: no file."""


@dataclass(kw_only=True)
class FaultConfig:
    """Dead, hung and slow ranks; non-finite steps."""

    timeout_s: Annotated[float, AT_LEAST_ZERO] = 300.0
    """Seconds within which the other ranks stop, with one line and exit code 76, once a rank is dead,
    frozen or makes no progress. Long phases (setup, the first step, validation, saving, generating
    images) may take `distributed.timeout_s`, but the process must stay alive. 0: ranks are not watched."""
    max_nonfinite_in_a_row: Annotated[int, AT_LEAST_ONE] = 10
    """A step with a non-finite loss or gradient is skipped on all ranks; after this many in a row the run
    stops with exit code 77."""
    slow_factor: Annotated[float, AT_LEAST_ZERO] = 1.5
    """A rank whose own time per step exceeds this factor times the median of the other ranks is named in
    `events.jsonl`; 0: never."""


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, through `peft`); the weights that a run starts from are frozen."""

    rank: Annotated[int, AT_LEAST_ZERO] = 0
    """Rank of the adapters; 0: no LoRA, all weights are trained."""
    alpha: Annotated[float | None, ABOVE_ZERO] = None
    """The product of the adapter matrices is scaled by `alpha / rank`; null: by 1."""
    dropout: Annotated[float, BELOW_ONE] = 0.0
    """Dropout on the adapters' input, 0 to below 1. Above 0 the loss curve depends on how samples are
    distributed over ranks."""
    target_modules: list[str] | None = None
    """Names of the blocks' linear layers that get an adapter, as `q_proj`; null: all of them."""
    train_embeddings: bool = False
    """Also train the whole embedding table."""
    train_head: bool = False
    """Also train the whole output head."""
    train_projector: bool = True
    """Also train the CLIP projector, where there is one."""


@dataclass(kw_only=True)
class InferenceConfig:
    """One call of the inference tools. Several texts in one value are separated by ``' *** '``."""

    mode: Literal["t2i", "inpainting", "extrapolation", "mmu"] = "t2i"
    """Task of the published demo scripts."""
    prompt: str | None = None
    """Instruction of an edit; prompt of inpainting; prompts of extrapolation, one per step."""
    image_path: str | None = None
    """Image to edit, inpaint or extrapolate."""
    inpainting_mask_path: str | None = None
    """Mask image: white is regenerated."""
    extra_direction: str | None = None
    """Directions of extrapolation, one per step: left, right, up, down."""
    offset: int = 0
    """Code columns (rows) by which the extrapolated half is larger than half an image."""
    mmu_image_root: str | None = None
    """Folder of the images to answer questions about."""
    question: str | None = None
    """Questions asked about each image."""
    top_k: Annotated[int, AT_LEAST_ONE] = 1
    """Answer tokens are sampled from the k most likely; 1: always the most likely."""
    temperature: Annotated[float, ABOVE_ZERO] = 1.0
    """Temperature of answer sampling, above 0."""
    max_new_tokens: Annotated[int, AT_LEAST_ONE] = 100
    """Longest answer in tokens."""
    samples: Annotated[int, AT_LEAST_ONE] = 1
    """Images per prompt, 1 or more."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; each gives every image once more. Seed and index of an image determine its random numbers."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the transformer; `auto`: bf16 on a GPU that has it, fp32 on a CPU."""
