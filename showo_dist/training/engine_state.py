"""Weights and AdamW moments of a DeepSpeed engine by parameter name, whatever the ZeRO stage and world size.

Everything goes through DeepSpeed's public accessors, one parameter at a time, so a state saved by one
partitioning loads into any other. All functions are collective: every rank calls them alike.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def _trained(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps, or the client's own where it wraps none (ZeRO-0 in fp32)."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _updated_tensors(engine: Any) -> list[Tensor]:
    """The tensors that the inner optimizer updates: flat fp32 partitions, or the parameters themselves."""
    flat = getattr(
        engine.optimizer, "fp32_partitioned_groups_flat", None
    )  # ZeRO-3 swaps its groups
    if flat is not None:
        return list(flat)
    return [p for group in _inner_optimizer(engine).param_groups for p in group["params"]]


def weight(engine: Any, parameter: nn.Parameter) -> Tensor:
    """The fp32 master weight, whole, on every rank."""
    full = safe_get_full_fp32_param(parameter)
    return (parameter if full is None else full).detach()


def moment(engine: Any, parameter: nn.Parameter, name: str) -> Tensor:
    """One AdamW moment, whole, on every rank."""
    full = safe_get_full_optimizer_state(parameter, name)
    return (_inner_optimizer(engine).state[parameter][name] if full is None else full).detach()


def tensors(engine: Any) -> Iterator[tuple[str, str, Callable[[], Tensor]]]:
    """(kind, name, gather) of every tensor to save: weights and moments; ``gather`` is collective."""
    for name, parameter in _trained(engine):
        yield "weight", name, partial(weight, engine, parameter)
        for key in MOMENTS:
            yield key, name, partial(moment, engine, parameter, key)


def optimizer_steps(engine: Any) -> int:
    """AdamW's own step count, which its bias correction depends on."""
    inner = _inner_optimizer(engine)
    if "step" in inner.param_groups[0]:  # apex counts per group
        return int(inner.param_groups[0]["step"])
    states = inner.state
    for tensor in _updated_tensors(engine):
        if tensor in states and "step" in states[tensor]:
            return int(states[tensor]["step"])
    return 0


def prepare(engine: Any, steps: int = 0) -> None:
    """Make the state that AdamW would make at its first step.

    Needed before :func:`restore`, and before the first step too: DeepSpeed connects parameters with their
    moments once, after the first of its groups has stepped, when those of the others would not exist yet.
    """
    inner = _inner_optimizer(engine)
    per_group = not isinstance(inner, torch.optim.AdamW)  # apex counts steps per group
    for group in inner.param_groups if per_group else []:
        group["step"] = steps
    for tensor in _updated_tensors(engine):
        zeros = {key: torch.zeros_like(tensor) for key in MOMENTS}
        count = {} if per_group else {"step": torch.tensor(float(steps), device=tensor.device)}
        inner.state[tensor] = {**count, **zeros}
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def restore(engine: Any, read: Callable[[str, str], Tensor], steps: int) -> None:
    """Fill weights and moments.

    Args:
        engine: already initialised, its module holding the weights in its own precision.
        read: (kind, name) to the whole fp32 tensor.
        steps: AdamW's step count.
    """
    prepare(engine, steps)
    inner = _inner_optimizer(engine)
    for name, parameter in _trained(engine):
        if safe_get_full_fp32_param(parameter) is None:
            parameter.data.copy_(read("weight", name))
        else:
            safe_set_full_fp32_param(parameter, read("weight", name).to(parameter.device))
        for key in MOMENTS:
            if parameter in inner.state:
                inner.state[parameter][key].copy_(read(key, name))
            else:
                safe_set_full_optimizer_state(parameter, read(key, name).to(parameter.device), key)
