"""One case of the matrix (engine, split, settings) and the report of a rank."""

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from showo_dist.config import TrainConfig

COEFFICIENTS = {"mmu": 1.0, "recon": 0.7, "lm": 0.1, "t2i": 1.3, "edit": 0.9}
FLOW_ORDER = ("mmu", "recon", "lm", "t2i")
LEARNING_RATE, EPSILON, MAX_NORM = 1e-3, 1e-4, 0.5


@dataclass(frozen=True)
class Case:
    """Settings of one training run on all ranks.

    Attributes:
        engine: ``torch`` or ``zero-STAGE``.
        split: see :func:`tests.single_pass.batches.split`.
        micro_steps: accumulation.
        steps: optimizer steps.
        bf16, checkpointing, normalization: as in the config.
        coefficients: of the flows; a flow that is missing has 0.
        settings: other keys of the config, dotted, with their values.
        flows: of the global batch.
        hangs: the last rank sleeps (to test the watchdog).
        family: of the model, in :mod:`tests.families`; None: a plain Phi.
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
    flows: tuple[str, ...] = FLOW_ORDER
    hangs: bool = False
    family: str | None = None

    def __str__(self) -> str:
        parts = [
            *filter(None, [self.family]),
            self.engine,
            self.split,
            f"accumulation-{self.micro_steps}",
        ]
        return "-".join([*parts, *(n for n in ("bf16", "checkpointing") if getattr(self, n))])


@dataclass(frozen=True)
class Report:
    """Result of a case on one rank.

    Attributes:
        start, weights: whole fp32 parameters by name, before and after.
        totals, grad_norms: of each step.
        means: flow means of the last step.
        averages: the parameters that the model computes with when the averages replace the weights.
    """

    start: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    totals: list[float]
    grad_norms: list[float]
    means: dict[str, float]
    averages: dict[str, np.ndarray] = field(default_factory=dict)


def config_of(case: Case) -> TrainConfig:
    """The training config of a case.

    With a small ``epsilon`` AdamW's first step is the sign of the gradient: it ignores the scale and turns
    rounding noise into full steps. A large ``epsilon`` makes the step depend on the gradient's value.
    """
    config = TrainConfig()
    config.optimizer.params.learning_rate = LEARNING_RATE
    config.optimizer.params.epsilon = EPSILON
    config.lr_scheduler.scheduler = "constant"
    config.training.batch_size_mmu = 1  # DeepSpeed needs a batch size of at least 1
    config.training.gradient_accumulation_steps = case.micro_steps
    config.training.max_grad_norm = MAX_NORM
    config.training.mixed_precision = "bf16" if case.bf16 else "fp32"
    config.model.gradient_checkpointing = case.checkpointing
    for key, value in case.settings:
        *sections, leaf = key.split(".")
        setattr(reduce(getattr, sections, config), leaf, value)
    if case.engine != "torch":
        config.distributed.zero_stage = int(case.engine.removeprefix("zero-"))  # type: ignore
        config.distributed.deepspeed |= {"zero_optimization": _SMALL_BUCKETS}
    return config


# By default a tiny model fits in one bucket, and ZeRO-3 keeps all of it gathered.
_SMALL_BUCKETS = {
    "reduce_bucket_size": 4000,
    "allgather_bucket_size": 4000,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 4000,
    "stage3_max_live_parameters": 8000,
}
