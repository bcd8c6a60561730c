"""What single numbers may be: counts, rates, probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from showo_dist.config.schema import TrainConfig

AT_LEAST_ONE = (
    "experiment.log_every",
    "model.gradient_checkpointing_every",
    "model.vq_model.downsample",
    "model.showo.llm_vocab_size",
    "model.showo.num_new_special_tokens",
    "model.showo.codebook_size",
    "model.showo.num_vq_tokens",
    "model.showo.clip_dim",
    "model.showo.clip_tokens",
    "dataset.params.shuffle_buffer_size",
    "dataset.params.resolution",
    "dataset.preprocessing.max_seq_length",
    "dataset.preprocessing.resolution",
    "data.streams",
    "data.window",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.max_train_steps",
    "training.down_scale",
    "training.generation_timesteps",
    "distributed.timeout_s",
    "fault.max_nonfinite_in_a_row",
    "inference.top_k",
    "inference.samples",
    "inference.max_new_tokens",
)
AT_LEAST_ZERO = (
    "experiment.save_every",
    "experiment.eval_every",
    "experiment.generate_every",
    "experiment.log_grad_norm_every",
    "experiment.keep_last",
    "experiment.keep_every",
    "data.cache_gb",
    "lora.rank",
    "fault.timeout_s",
    "fault.slow_factor",
    "data.retries",
    "dataset.params.num_workers",
    "optimizer.params.weight_decay",
    "lr_scheduler.params.warmup_steps",
    "training.t2i_coeff",
    "training.lm_coeff",
    "training.mmu_coeff",
    "training.recon_coeff",
    "training.seed",
    "training.guidance_scale",
    "training.generation_temperature",
)
ABOVE_ZERO = (
    "optimizer.params.learning_rate",
    "optimizer.params.epsilon",
    "lora.alpha",
    "training.max_grad_norm",
    "inference.temperature",
)
FRACTIONS = (
    "data.max_bad_fraction",
    "training.cond_dropout_prob",
    "training.min_masking_rate",
    "training.mask_contiguous_region_prob",
)
BELOW_ONE = (
    "optimizer.params.beta1",
    "optimizer.params.beta2",
    "training.label_smoothing",
    "lora.dropout",
)


def numbers_in_range(config: TrainConfig) -> Iterator[str]:
    """Single numbers: counts, rates, probabilities."""
    checks: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (AT_LEAST_ONE, lambda value: value >= 1, "1 or more"),
        (AT_LEAST_ZERO, lambda value: value >= 0, "0 or more"),
        (ABOVE_ZERO, lambda value: value > 0, "a number above 0"),
        (FRACTIONS, lambda value: 0 <= value <= 1, "0 to 1"),
        (BELOW_ONE, lambda value: 0 <= value < 1, "0 to below 1"),
    )
    for keys, allowed, words in checks:
        for key in keys:
            value: Any = reduce(getattr, key.split("."), config)
            if value is not None and not (math.isfinite(value) and allowed(value)):
                yield f"{key} = {value}: expected {words}"
