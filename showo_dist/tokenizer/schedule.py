"""The learning rate over time."""

import math

from showo_dist.tokenizer.config import AdamWConfig


def learning_rate(config: AdamWConfig, step: int, total: int) -> float:
    """Rate of optimizer step ``step`` (from 0) of ``total``."""
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = 0.5 + 0.5 * math.cos(math.pi * step / total)
    return (
        config.learning_rate
        * warm_up
        * (config.final_fraction + (1 - config.final_fraction) * left)
    )
