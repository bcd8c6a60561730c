"""Sections ``optimizer``, ``lr_scheduler``, ``training`` and ``distributed``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from showo_dist.config.hints import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    BELOW_ONE,
    FRACTION,
    SHARE,
)


@dataclass(kw_only=True)
class OptimizerParams:
    """AdamW (docs/specification.md, section 8)."""

    learning_rate: Annotated[float, ABOVE_ZERO] = 1e-4
    """Peak learning rate, above 0."""
    scale_lr: bool = False
    """Must be false: the published system names it but never applied it."""
    beta1: Annotated[float, BELOW_ONE] = 0.9
    """Decay of the first moment, 0 to below 1."""
    beta2: Annotated[float, BELOW_ONE] = 0.999
    """Decay of the second moment, 0 to below 1."""
    weight_decay: Annotated[float, AT_LEAST_ZERO] = 0.01
    """Decoupled weight decay, 0 or more."""
    epsilon: Annotated[float, ABOVE_ZERO] = 1e-8
    """Added to the denominator, above 0."""
    no_decay: Literal["published", "standard"] = "published"
    """Parameters without weight decay: `published` biases alone, `standard` also norms and
    embeddings."""
    implementation: Literal["torch", "apex"] = "torch"
    """AdamW's kernels: torch's fused ones, or those of NVIDIA's apex, which has to be installed on every host
    with a GPU; apex needs `distributed.zero_stage` 0 to 2 and no offload."""


@dataclass(kw_only=True)
class MuonParams:
    """Muon, read with `optimizer.name: muon`. Warm-up and decay of the learning rate are AdamW's."""

    learning_rate: Annotated[float, ABOVE_ZERO] = 0.02
    """Peak learning rate of the matrices, above 0."""
    momentum: Annotated[float, BELOW_ONE] = 0.95
    """Nesterov momentum, 0 to below 1."""
    weight_decay: Annotated[float, AT_LEAST_ZERO] = 0.01
    """Decoupled weight decay of the matrices, 0 or more; multiplied by the learning rate."""
    ns_steps: Annotated[int, AT_LEAST_ONE] = 5
    """Newton-Schulz iterations that orthogonalise an update, in the format of the forward pass."""
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    """Factor of the rate of a matrix of A rows and B columns: `original` sqrt(max(1, A / B));
    `match_rms_adamw` 0.2 sqrt(max(A, B)), with which AdamW's rates fit."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer."""

    name: Literal["adamw", "muon"] = "adamw"
    """`adamw`, fused where there is a fused implementation; `muon`: Muon for the matrices of the blocks and
    of the projector, AdamW for embeddings, head and vectors."""
    trained: Literal["all", "projector"] | None = None
    """`all` weights, or the CLIP projector alone (`projector`): the others have the learning rate 0, though
    their gradients are computed. null: as published, `projector` with `model.showo.w_clip_vit` and
    `dataset.und_type: llava_pretrain`, otherwise `all`."""
    params: OptimizerParams = field(default_factory=OptimizerParams)
    muon: MuonParams = field(default_factory=MuonParams)


@dataclass(kw_only=True)
class LRSchedulerParams:
    """Warm-up."""

    learning_rate: float | None = None
    """Null or equal to `optimizer.params.learning_rate`; anything else is an error, because the
    optimizer's rate is used."""
    warmup_steps: Annotated[int, AT_LEAST_ZERO] = 0
    """Optimizer steps of linear warm-up from 0."""


@dataclass(kw_only=True)
class LRSchedulerConfig:
    """The learning rate over time."""

    scheduler: Literal["cosine", "constant"] = "cosine"
    """After warm-up: cosine to 0, or constant."""
    steps: Annotated[int | None, AT_LEAST_ONE] = None
    """Optimizer steps after which the cosine is 0; null: `training.max_train_steps`. A shorter training ends
    with a rate above 0."""
    params: LRSchedulerParams = field(default_factory=LRSchedulerParams)


@dataclass(kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights (EMA)."""

    decay: Annotated[float | None, BELOW_ONE] = None
    """Part of the averages that an optimizer step keeps, as 0.999; after s steps at most (1 + s) / (10 + s).
    null: no averages."""
    evaluate: bool = False
    """Validation and image grids use the averaged weights."""


# Samplers that mask generated codes again.
REMASKING = ("remdm", "refine")


@dataclass(kw_only=True)
class TrainingConfig:
    """Flows, losses, masking, precision and length of a run."""

    batch_size_t2i: int = -1
    """Text-to-image samples per rank and micro-step; -1: this flow is off."""
    batch_size_lm: int = -1
    """Plain-text samples per rank and micro-step; -1: off."""
    batch_size_mmu: int = -1
    """Understanding samples per rank and micro-step; -1: off."""
    batch_size_recon: int = -1
    """Reconstruction samples (RecA) per rank and micro-step; -1: off."""
    batch_size_edit: int = -1
    """Edit samples per rank and micro-step; -1: off."""
    t2i_coeff: Annotated[float, AT_LEAST_ZERO] = 1.0
    """Weight of the text-to-image loss; 0: the flow is off and costs nothing."""
    lm_coeff: Annotated[float, AT_LEAST_ZERO] = 0.1
    """Weight of the plain-text loss; 0: off."""
    mmu_coeff: Annotated[float, AT_LEAST_ZERO] = 1.0
    """Weight of the understanding loss; 0: off."""
    recon_coeff: Annotated[float, AT_LEAST_ZERO] = 1.0
    """Weight of the reconstruction loss; 0: off."""
    edit_coeff: Annotated[float, AT_LEAST_ZERO] = 1.0
    """Weight of the edit loss; 0: off."""
    batch_size: Annotated[int | None, AT_LEAST_ONE] = None
    """Prompts per forward pass of the inference tools; training does not read it."""
    row_steps_per_octave: Annotated[int | None, AT_LEAST_ZERO] = None
    """Lengths between a power of two and the next that packed rows are padded to: with 32, rows of 8,193 to
    8,448 tokens all have 8,448. 0: rows are padded to multiples of 128. null: 32 where kernels are compiled
    per length (`model.compile` or the `flex` backend), else 0."""
    gradient_accumulation_steps: Annotated[int, AT_LEAST_ONE] = 1
    """Micro-steps per optimizer step."""
    tokens_per_step: Annotated[int | None, AT_LEAST_ONE] = None
    """Tokens that a packed row of a micro-step holds at most, without its padding: an optimizer step has the
    same samples, in as few rows as hold the longest ones possible. null: a micro-step holds
    `training.batch_size_*` samples."""
    pack_ahead: bool | None = None
    """Read, encode, pack and plan the samples of the next optimizer step in a thread while this one runs;
    null: on GPUs. On a CPU the thread would take the step's cores."""
    max_train_steps: Annotated[int, AT_LEAST_ONE] = 1_000_000
    """Optimizer steps of the run."""
    seed: Annotated[int, AT_LEAST_ZERO] = 10086
    """Seed of data order, masks, prompts and initial weights. The same on every rank."""
    deterministic: bool = False
    """Use kernels that add in a fixed order, so that a resumed run repeats bit for bit on GPUs too. Slower
    there; CPUs always do."""
    mixed_precision: str = "auto"
    """`bf16`; `fp32` (or `"no"`, quoted); `auto`: bf16 on hardware with fast bf16, else
    fp32."""
    enable_tf32: bool = True
    """TensorFloat-32 matrix products on NVIDIA GPUs, for everything that is not bf16."""
    max_grad_norm: Annotated[float | None, ABOVE_ZERO] = None
    """Clip the gradient to this norm; null: no clipping."""
    loss_normalization: Literal["global", "rank"] = "global"
    """`global`: one mean per flow over the whole global batch; `rank`: a mean per rank and
    micro-step (published)."""
    noise_type: Literal["mask", "random_replace"] = "mask"
    """Masked image tokens become the mask token, or random codes."""
    mask_schedule: str = "cosine"
    """Masked fraction over time: `cosine`, `linear`, `sigmoid` or `pow` with an exponent, as `pow2`
    or `pow0.5`."""
    masking: Literal["independent", "stratified"] = "independent"
    """`independent`: each image's time in `mask_schedule` is drawn from 0 to 1 (published); `stratified`: the
    images of an optimizer step get one time from each of as many equal parts of 0 to 1, whatever the number
    of ranks."""
    min_masking_rate: Annotated[float, FRACTION] = 0.0
    """Smallest masked fraction, 0 to 1."""
    mask_contiguous_region_prob: Annotated[float | None, FRACTION] = None
    """Probability of masking one rectangle instead of scattered tokens; null: never."""
    predict_all_tokens: bool = False
    """Loss on all image tokens instead of the masked ones."""
    eval_mask_ratios: list[float] | None = None
    """Masked fractions of validation (each 0 to 1): a held-out image always gets the same one of them;
    null: a fraction from the schedule, also always the same."""
    cond_dropout_prob: Annotated[float, FRACTION] = 0.1
    """Probability of dropping the text of a text-to-image or edit sample, for classifier-free guidance."""
    label_smoothing: Annotated[float, BELOW_ONE] = 0.0
    """Label smoothing of all losses, 0 to below 1."""
    down_scale: Annotated[int, AT_LEAST_ONE] = 2
    """RecA with image codes: the condition is the target shrunk by this factor. 1 teaches
    copying."""
    resize_back: bool = False
    """RecA: enlarge the shrunk condition to the target's size again (a blur)."""
    guidance_scale: Annotated[float, AT_LEAST_ZERO] = 0.0
    """Classifier-free guidance w of generated images; 0: none."""
    generation_timesteps: Annotated[int, AT_LEAST_ONE] = 12
    """Rounds of parallel decoding per image."""
    generation_temperature: Annotated[float, AT_LEAST_ZERO] = 1.0
    """Temperature T of the confidence noise (docs/specification.md, section 9)."""
    generation_sampler: Literal[
        "confidence", "halton", "random", "one-by-one", "remdm", "refine"
    ] = "confidence"
    """Which codes a round masks again: `confidence` as published; docs/generation.md describes the others."""
    generation_top_p: Annotated[float, SHARE] = 1.0
    """Codes are sampled among the most likely ones that together have this probability; 1: among all."""
    generation_remask: Annotated[float, FRACTION] = 0.1
    """Share of codes that the samplers `remdm` and `refine` mask again."""
    guidance_schedule: Literal["constant", "linear"] = "constant"
    """`linear`: guidance grows from 0 in the first round to `training.guidance_scale` in the last one."""
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Guidance is applied between these two shares of the rounds, 0 to 1, alone."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    overfit_one_batch: bool = False
    """Train on the first batch only, to check that a setup can overfit."""


@dataclass(kw_only=True)
class DistributedConfig:
    """DeepSpeed and the process group."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`deepspeed`: ZeRO 0 to 3; `torch`: plain torch with DistributedDataParallel, which shards nothing and
    leaves `zero_stage` without effect and refuses further settings of DeepSpeed. Checkpoints fit both."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: 0 shards nothing, 1 the optimizer, 2 also gradients, 3 also parameters."""
    gradient_accumulation_dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs under ZeRO 1 to 3: number format in which gradients are summed over micro-steps. `bf16` needs
    less memory and loses small gradients. Always fp32 elsewhere."""
    gradient_reduction_dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs: number format in which gradients are sent and summed over ranks; `bf16` halves the bytes.
    fp32 runs always use fp32."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed settings, merged over ours; keys that this config sets elsewhere are
    refused."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu`, from ZeRO-1 on: the optimizer's state and the fp32 weights are kept and updated in host
    memory."""
    offload_param: Literal["none", "cpu", "nvme"] = "none"
    """ZeRO-3: where this rank's share of the parameters is kept until it is gathered."""
    offload_path: str | None = None
    """Folder on the fast disk that `distributed.offload_param: nvme` uses."""
    offload_pin_memory: bool = True
    """Page-locked host memory for offloaded state: faster copies, but it cannot be paged out."""
    timeout_s: Annotated[int, AT_LEAST_ONE] = 1800
    """Seconds that a collective may take before the run is declared hung."""
