"""Weights and moments of DeepSpeed's engine by parameter name, for every ZeRO stage and world size.

A rank reads its own memory only: contiguous pieces of flattened fp32 tensors, with nothing gathered and
nothing copied. Their offsets come from the mappings that DeepSpeed's public accessors use.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from showo_dist.checkpoint.slices import WEIGHT, Piece, even_share
from showo_dist.training.muon import Muon, Share, by_muon
from showo_dist.training.optimizer import (
    kinds_in,
    make_moments,
    replicated,
    set_step_count,
    step_count,
)


def _trained(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps, or the client's own where it wraps none (ZeRO-0 in fp32)."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def updated_tensors(engine: Any) -> list[Tensor]:
    """The tensors that the inner optimizer updates: flat fp32 partitions, or the parameters themselves."""
    # ZeRO-3 swaps the groups of its inner optimizer around each step, so read its own list.
    flat = getattr(
        engine.optimizer, "fp32_partitioned_groups_flat", None
    )  # ZeRO-3 swaps its groups
    if flat is not None:
        return list(flat)
    return [p for group in inner_optimizer(engine).param_groups for p in group["params"]]


def held(engine: Any) -> Iterator[Piece]:
    """All weights and moments in this rank's memory, as views of it: a partition, or everything at ZeRO-0."""
    for name, parameter in _trained(engine):
        # The attribute tells the stage: ZeRO-3 tags parameters with `ds_id`, ZeRO 1 and 2 with `_hp_mapping`.
        if hasattr(parameter, "ds_id"):
            yield from _of_partition(engine, name, parameter)
        elif hasattr(parameter, "_hp_mapping"):
            yield from _of_group(name, parameter)
        else:
            yield from replicated(inner_optimizer(engine), name, parameter)


def owned(engine: Any, rank: int, world: int) -> list[Piece]:
    """This rank's part of the state: together the ranks have every element once."""
    # At ZeRO-0 every rank holds everything; then each rank takes an equal share, so that all ranks write.
    pieces = list(held(engine))
    return pieces if _is_partitioned(engine) else even_share(pieces, rank, world)


def _is_partitioned(engine: Any) -> bool:
    return any(hasattr(p, "ds_id") or hasattr(p, "_hp_mapping") for _, p in _trained(engine))


def _of_group(name: str, parameter: Any, moments: bool = True) -> Iterator[Piece]:
    """ZeRO-1 and 2: all parameters end to end, cut into equal partitions; many lie outside this one."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return
    # The fragment's address counts from the start of its own parameter, not of the flat group.
    start = mapping.lp_fragment_address.start
    for kind in kinds_in(mapping.optim_fragment) if moments else (WEIGHT,):
        run_N = mapping.get_hp_fragment(None if kind == WEIGHT else kind).detach()
        yield Piece(kind, name, tuple(parameter.shape), start, run_N)


def _of_partition(engine: Any, name: str, parameter: Any, moments: bool = True) -> Iterator[Piece]:
    """ZeRO-3: every parameter by itself is cut into equal partitions, the last ones filled up."""
    optimizer, shape = engine.optimizer, tuple(parameter.ds_shape)
    group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
    # Partitions have equal size, so the last ranks may hold padding only.
    start = dist.get_rank() * numel
    kept = min(numel, prod(shape) - start)
    if kept <= 0:
        return
    flat_N = optimizer.fp32_partitioned_groups_flat[group]
    state = inner_optimizer(engine).state[flat_N] if moments else {}
    for kind in kinds_in(state):
        whole_N = flat_N if kind == WEIGHT else state[kind]
        yield Piece(kind, name, shape, start, whole_N.detach()[offset : offset + kept])


def _shares(engine: Any, optimizer: Muon) -> dict[Tensor, list[Share]]:
    """The matrices in each flat partition that Muon updates; empty at ZeRO-0, where they are whole."""
    shares: dict[Tensor, list[Share]] = {}
    before = 0  # elements of Muon's group before the matrix
    for name, parameter in _trained(engine):
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if not by_muon(name, shape):
            continue
        if hasattr(parameter, "ds_id"):  # every matrix is split over all ranks
            flat_N, part = _partition_of(engine, parameter)
            pieces = _of_partition(engine, name, parameter, False)
            sizes = _sizes(0, prod(shape), part)
        elif hasattr(parameter, "_hp_mapping"):  # the group is
            flat_N = _muon_partition(optimizer)
            pieces = _of_group(name, parameter, False)
            sizes = _sizes(before, prod(shape), flat_N.numel())
        else:
            return {}
        nothing = Piece(WEIGHT, name, shape, 0, flat_N.detach()[:0])
        values_N = next(pieces, nothing).values_N
        assert values_N.numel() == sizes[dist.get_rank()], f"{name}: another share than expected"
        offset = int(values_N.storage_offset() - flat_N.storage_offset())
        shares.setdefault(flat_N, []).append(Share(shape, values_N, offset, sizes))
        before += prod(shape)
    return shares


def _sizes(start: int, count: int, part: int) -> tuple[int, ...]:
    """Elements that every rank holds of ``count`` from ``start`` on, where ranks hold ``part`` each."""
    stop = start + count
    cuts = [min(max(rank * part, start), stop) for rank in range(dist.get_world_size() + 1)]
    return tuple(after - cut for cut, after in pairwise(cuts))


def _partition_of(engine: Any, parameter: Any) -> tuple[Tensor, int]:
    """ZeRO-3: the flat partition that has this rank's part of a parameter, and the part's elements."""
    optimizer = engine.optimizer
    group, _, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
    return optimizer.fp32_partitioned_groups_flat[group], part


def _muon_partition(optimizer: Muon) -> Tensor:
    """ZeRO-1 and 2: the one flat partition of Muon's group."""
    (group,) = (group for group in optimizer.param_groups if group["muon"])
    (flat_N,) = group["params"]
    return flat_N


def optimizer_steps(engine: Any) -> int:
    """The optimizer's own step count, which AdamW's bias correction depends on."""
    return step_count(inner_optimizer(engine), updated_tensors(engine))


def gradient_norms(engine: Any) -> dict[str, float]:
    """Norm of every parameter's whole gradient, between the last backward of a window and its step."""
    norms = {}
    for name, parameter in _trained(engine):
        gradient = safe_get_full_grad(parameter)
        norms[name] = float("nan") if gradient is None else float(gradient.norm())
    return norms


def prepare(engine: Any, averaged: bool) -> None:
    """Make the optimizer state, with averages of the weights or without; once, before any step or restore.

    DeepSpeed connects parameters with their moments once, after the first of its groups has stepped, when the
    moments of the other groups would not exist yet.
    """
    if getattr(engine.optimizer, "swap_optimizer", False):
        raise ValueError(
            "distributed.offload_optimizer = nvme: checkpoints cannot reach the optimizer's state "
            "there; use cpu or none"
        )
    optimizer = inner_optimizer(engine)
    if isinstance(optimizer, Muon):
        optimizer.shares = _shares(engine, optimizer)
    make_moments(optimizer, updated_tensors(engine), averaged)
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def refresh(engine: Any) -> None:
    """Copy the optimizer's fp32 weights to where the model computes with them, as a step does; collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "update_lp_params"):  # ZeRO-1 and 2
        optimizer.update_lp_params()
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO-3
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def restore(engine: Any, read: Callable[[Piece], Tensor], steps: int) -> None:
    """Fill this rank's weights and moments.

    Args:
        engine: prepared, its module holding the weights in its own precision.
        read: a place in this rank's memory to the flat fp32 values that belong there, as
            :meth:`~showo_dist.checkpoint.reader.CheckpointReader.read_piece`.
        steps: AdamW's step count.
    """
    # The pieces are views of the engine's memory: copying into them is the restore.
    for piece in held(engine):
        piece.values_N.copy_(read(piece))
    set_step_count(inner_optimizer(engine), updated_tensors(engine), steps)
