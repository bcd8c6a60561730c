"""One case of the matrix: which engine, split how; what every rank reports of it."""

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from showo_dist.config import TrainConfig

COEFFICIENTS = {"mmu": 1.0, "recon": 0.7, "lm": 0.1, "t2i": 1.3}
LEARNING_RATE, EPSILON, MAX_NORM = 1e-3, 1e-4, 0.5


@dataclass(frozen=True)
class Case:
    """What the ranks are asked to do.

    Attributes:
        engine: ``torch`` or ``zero-STAGE``.
        split: see :func:`tests.single_pass.batches.split`.
        micro_steps: accumulation.
        steps: optimizer steps.
        bf16, checkpointing, normalization: as in the config.
        coefficients: of the flows; a flow that is missing has 0.
        settings: other keys of the config, dotted, with their values.
        hangs: the last rank never arrives (to try the watchdog).
    """

    engine: str
    split: str = "even"
    micro_steps: int = 1
    steps: int = 1
    bf16: bool = False
    checkpointing: bool = False
    normalization: str = "global"
    coefficients: dict[str, float] = field(default_factory=lambda: dict(COEFFICIENTS))
    settings: tuple[tuple[str, Any], ...] = ()
    hangs: bool = False

    def __str__(self) -> str:
        parts = [self.engine, self.split, f"accumulation-{self.micro_steps}"]
        return "-".join([*parts, *(n for n in ("bf16", "checkpointing") if getattr(self, n))])


@dataclass(frozen=True)
class Report:
    """What one rank says after a case.

    Attributes:
        start, weights: whole fp32 parameters by name, before and after.
        totals, grad_norms: of each step.
        means: flow means of the last step.
    """

    start: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    totals: list[float]
    grad_norms: list[float]
    means: dict[str, float]


def config_of(case: Case) -> TrainConfig:
    """The training config of a case.

    AdamW's first step is the gradient's sign where ``epsilon`` is small: blind to its scale, and noise where
    the gradient is. A large one makes the step a function of the gradient.
    """
    config = TrainConfig()
    config.optimizer.params.learning_rate = LEARNING_RATE
    config.optimizer.params.epsilon = EPSILON
    config.lr_scheduler.scheduler = "constant"
    config.training.batch_size_mmu = 1  # DeepSpeed wants to know of at least one sample
    config.training.gradient_accumulation_steps = case.micro_steps
    config.training.max_grad_norm = MAX_NORM
    config.training.mixed_precision = "bf16" if case.bf16 else "fp32"
    config.model.gradient_checkpointing = case.checkpointing
    for key, value in case.settings:
        *sections, leaf = key.split(".")
        setattr(reduce(getattr, sections, config), leaf, value)
    if case.engine != "torch":
        config.distributed.zero_stage = int(case.engine.removeprefix("zero-"))  # type: ignore
        config.distributed.deepspeed = {"zero_optimization": _SMALL_BUCKETS}
    return config


# A tiny model would fit in one bucket, and ZeRO-3 would keep all of it gathered.
_SMALL_BUCKETS = {
    "reduce_bucket_size": 4000,
    "allgather_bucket_size": 4000,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 4000,
    "stage3_max_live_parameters": 8000,
}
