"""AdamW groups and the learning rate over time (docs/specification.md, section 8)."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from showo_dist.config.training import LRSchedulerConfig, OptimizerParams


def decays(name: str, parameter: nn.Parameter, rule: str) -> bool:
    """Whether weight decay applies.

    Args:
        name: of the parameter.
        parameter: itself.
        rule: ``published`` spares biases alone (its list of names matches nothing else in this backbone);
            ``standard`` also spares norms and the embedding table.
    """
    if rule == "published":
        return not name.endswith("bias")
    return parameter.ndim > 1 and "embed_tokens" not in name


def parameter_groups(model: nn.Module, params: OptimizerParams) -> list[dict]:
    """Two groups, with and without decay, in the model's own order."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decays(name, p, params.no_decay)]
    spared = [p for name, p in named if not decays(name, p, params.no_decay)]
    groups = [
        {"params": decayed, "weight_decay": params.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, params: OptimizerParams, on_host: bool = False) -> Optimizer:
    """AdamW over what is trained: apex's on a GPU that has it, else torch's, fused.

    Args:
        model: of the run.
        params: section ``optimizer.params``.
        on_host: its state is kept and updated in host memory, which apex cannot do.
    """
    settings: dict[str, Any] = {
        "lr": params.learning_rate,
        "betas": (params.beta1, params.beta2),
        "eps": params.epsilon,
    }
    groups = parameter_groups(model, params)
    if torch.cuda.is_available() and not on_host:
        try:
            from apex.optimizers import FusedAdam
        except ImportError:
            pass
        else:
            return FusedAdam(groups, adam_w_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def build_schedule(optimizer: Optimizer, schedule: LRSchedulerConfig, steps: int) -> LRScheduler:
    """Linear warm-up from 0, then cosine to 0 at ``steps``, or constant."""
    name = {"cosine": "cosine", "constant": "constant_with_warmup"}[schedule.scheduler]
    return get_scheduler(
        name, optimizer, num_warmup_steps=schedule.params.warmup_steps, num_training_steps=steps
    )
