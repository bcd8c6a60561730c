"""What limits a run, and the setting to change."""

from __future__ import annotations

from collections.abc import Sequence

from showo_dist.plan.hardware import Gpu
from showo_dist.plan.study import Prediction

# Left to the CUDA context, NCCL's buffers and what the allocator cannot use.
USABLE_MEMORY = 0.92
_MUCH = 0.2


def fits(prediction: Prediction, gpu: Gpu) -> bool:
    """Whether the predicted peak leaves room for what is not predicted."""
    return prediction.profile.peak <= USABLE_MEMORY * gpu.memory


def advice(own: Prediction, others: Sequence[Prediction], gpu: Gpu) -> list[str]:
    """Lines about the config's own setting.

    Args:
        own: prediction of the setting that the config has.
        others: of all settings looked at.
        gpu: where it runs.
    """
    possible = [p for p in others if fits(p, gpu)]
    if not fits(own, gpu):
        return [_does_not_fit(own, possible, gpu)]
    lines = [_limit(own)]
    best = max(possible, key=lambda p: p.tokens / p.time.total_s)
    gain = best.tokens / best.time.total_s / (own.tokens / own.time.total_s) - 1
    if gain > 0.05:
        lines.append(f"{gain:.0%} more tokens per second with {describe(best)}")
    return lines


def describe(prediction: Prediction) -> str:
    """The keys that make a setting."""
    setting = prediction.setting
    keys = f"distributed.zero_stage={setting.zero_stage} "
    keys += f"model.gradient_checkpointing={str(setting.checkpointing).lower()}"
    return keys if setting.scale == 1 else f"{keys} and training.batch_size_* × {setting.scale}"


def _does_not_fit(own: Prediction, possible: Sequence[Prediction], gpu: Gpu) -> str:
    need = f"does not fit: {own.profile.peak / 1e9:.1f} GB of {gpu.memory / 1e9:.0f} GB"
    if not possible:
        return f"{need}, nor does any setting above: lower training.batch_size_* and accumulate"
    best = max(possible, key=lambda p: p.tokens / p.time.total_s)
    return f"{need}; what fits and is fastest: {describe(best)}"


def _limit(own: Prediction) -> str:
    exposed = own.time.exposed_s / own.time.total_s
    encoders = own.compute.encoders_s / own.time.total_s
    if exposed > _MUCH and exposed >= encoders:
        return (
            f"limited by the network: {exposed:.0%} of the step waits for it; raise "
            "training.gradient_accumulation_steps or training.batch_size_*, or lower distributed.zero_stage"
        )
    if encoders > _MUCH:
        return (
            f"limited by the frozen encoders: {encoders:.0%} of the step; encode the shards once, "
            "ahead of training, with showo-dist encode"
        )
    return f"limited by compute: the network adds {exposed:.0%}, the frozen encoders {encoders:.0%}"
