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
    safe_get_full_grad,
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
    if _counts_per_group(inner):
        return int(inner.param_groups[0].get("step", 0))
    return int(inner.state[_updated_tensors(engine)[0]]["step"])


def gradient_norms(engine: Any) -> dict[str, float]:
    """Norm of every parameter's whole gradient, between the last backward of a window and its step."""
    norms = {}
    for name, parameter in _trained(engine):
        gradient = safe_get_full_grad(parameter)
        norms[name] = float("nan") if gradient is None else float(gradient.norm())
    return norms


def _counts_per_group(optimizer: torch.optim.Optimizer) -> bool:
    """apex keeps one step count per group, torch one per tensor."""
    return not isinstance(optimizer, torch.optim.AdamW)


def prepare(engine: Any) -> None:
    """Make the state that AdamW would make at its first step; once, before any step or restore.

    DeepSpeed connects parameters with their moments once, after the first of its groups has stepped, when
    those of the others would not exist yet.
    """
    inner = _inner_optimizer(engine)
    for tensor in _updated_tensors(engine):
        state = {key: torch.zeros_like(tensor) for key in MOMENTS}
        if not _counts_per_group(inner):
            state["step"] = torch.tensor(0.0, device=tensor.device)
        inner.state[tensor] = state
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def _set_steps(engine: Any, steps: int) -> None:
    inner = _inner_optimizer(engine)
    if _counts_per_group(inner):
        for group in inner.param_groups:
            group["step"] = steps
        return
    for tensor in _updated_tensors(engine):
        inner.state[tensor]["step"].fill_(steps)


def restore(engine: Any, read: Callable[[str, str], Tensor], steps: int) -> None:
    """Fill weights and moments.

    Args:
        engine: prepared, its module holding the weights in its own precision.
        read: (kind, name) to the whole fp32 tensor.
        steps: AdamW's step count.
    """
    _set_steps(engine, steps)
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
