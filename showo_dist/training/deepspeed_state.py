"""Weights and AdamW moments of a DeepSpeed engine by parameter name, whatever the ZeRO stage and world size.

A rank looks at its own memory alone: runs of flattened fp32 tensors, with nothing gathered and nothing
copied. Where they begin is read from the mappings that DeepSpeed's public accessors use.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import Tensor, nn

from showo_dist.checkpoint.slices import KINDS, MOMENTS, WEIGHT, Piece, even_share


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
    """The fp32 master weight, whole, on every rank; collective."""
    full = safe_get_full_fp32_param(parameter)
    return (parameter if full is None else full).detach()


def held(engine: Any) -> Iterator[Piece]:
    """All weights and moments in this rank's memory, as views of it: a partition, or everything at ZeRO-0."""
    for name, parameter in _trained(engine):
        for kind in KINDS:
            if hasattr(parameter, "ds_id"):
                yield from _of_partition(engine, name, parameter, kind)
            elif hasattr(parameter, "_hp_mapping"):
                yield from _of_group(name, parameter, kind)
            else:
                yield _replicated(engine, name, parameter, kind)


def owned(engine: Any, rank: int, world: int) -> list[Piece]:
    """This rank's part of the state: together the ranks have every element once."""
    pieces = list(held(engine))
    return pieces if _is_partitioned(engine) else even_share(pieces, rank, world)


def _is_partitioned(engine: Any) -> bool:
    return any(hasattr(p, "ds_id") or hasattr(p, "_hp_mapping") for _, p in _trained(engine))


def _replicated(engine: Any, name: str, parameter: nn.Parameter, kind: str) -> Piece:
    """ZeRO-0: the parameter itself."""
    whole = parameter if kind == WEIGHT else _inner_optimizer(engine).state[parameter][kind]
    return Piece(kind, name, tuple(parameter.shape), 0, whole.detach().view(-1))


def _of_group(name: str, parameter: Any, kind: str) -> Iterator[Piece]:
    """ZeRO-1 and 2: all parameters end to end, cut into equal partitions; many lie outside this one."""
    mapping = parameter._hp_mapping
    if mapping is not None:
        run_N = mapping.get_hp_fragment(None if kind == WEIGHT else kind).detach()
        start = mapping.lp_fragment_address.start
        yield Piece(kind, name, tuple(parameter.shape), start, run_N)


def _of_partition(engine: Any, name: str, parameter: Any, kind: str) -> Iterator[Piece]:
    """ZeRO-3: every parameter by itself is cut into equal partitions, the last ones filled up."""
    optimizer, shape = engine.optimizer, tuple(parameter.ds_shape)
    group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank() * numel
    kept = min(numel, prod(shape) - start)
    if kept > 0:
        flat_N = optimizer.fp32_partitioned_groups_flat[group]
        whole_N = flat_N if kind == WEIGHT else _inner_optimizer(engine).state[flat_N][kind]
        yield Piece(kind, name, shape, start, whole_N.detach()[offset : offset + kept])


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
    if getattr(engine.optimizer, "swap_optimizer", False):
        raise ValueError(
            "distributed.offload_optimizer = nvme: checkpoints cannot reach the optimizer's state "
            "there; use cpu or none"
        )
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


def before_updates(engine: Any, action: Callable[[], None]) -> None:
    """Have something done before every step that changes weights and moments."""
    _inner_optimizer(engine).register_step_pre_hook(lambda *_: action())


def restore(engine: Any, read: Callable[[Piece], Tensor], steps: int) -> None:
    """Fill this rank's weights and moments.

    Args:
        engine: prepared, its module holding the weights in its own precision.
        read: a place in this rank's memory to the flat fp32 values that belong there, as
            :meth:`~showo_dist.checkpoint.reader.CheckpointReader.read_piece`.
        steps: AdamW's step count.
    """
    for piece in held(engine):
        piece.values_N.copy_(read(piece))
    _set_steps(engine, steps)
