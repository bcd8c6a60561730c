"""Run one optimizer step of the real DeepSpeed engine on shapes, to find the memory and traffic of a rank.

The tensors are on the meta device, the process group is torch's fake one and the accelerator is DeepSpeed's
CPU one. Everything else is the code that trains. Letter: F flows.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from showo_dist.config import TrainConfig
from showo_dist.models import showo
from showo_dist.models.showo import ShowO, build_showo
from showo_dist.plan.attention import attention_of_shapes
from showo_dist.plan.batch import on_meta
from showo_dist.plan.shapes import META, Collective, Shapes, storages_of
from showo_dist.runtime.numerics import uses_bf16
from showo_dist.sequences import FLOWS, PackedBatch
from showo_kernels import losses, select_backend


@dataclass(frozen=True)
class StepProfile:
    """Memory and traffic of one rank's optimizer step.

    Attributes:
        static: bytes of each part that are live between two steps.
        peak: largest number of live bytes in a step.
        at_peak: bytes of each part that are live at the peak.
        collectives: calls of the step, in order.
    """

    static: dict[str, int]
    peak: int
    at_peak: dict[str, int]
    collectives: list[Collective]


def engine_module() -> Any:
    """Import the DeepSpeed engine with DeepSpeed's CPU accelerator, on any machine."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")
    from showo_dist.training import deepspeed_engine as engine

    return engine


@contextmanager
def fake_ranks(rank: int, world: int) -> Iterator[None]:
    """Join a fake process group as ``rank`` of ``world``; its collectives send nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert not dist.is_initialized()
    names = {"RANK": str(rank), "WORLD_SIZE": str(world)}
    _exclude_from_collection()
    with patch.dict(os.environ, names):
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        try:
            yield
        finally:
            _forget_deepspeed_groups()
            dist.destroy_process_group()


def _exclude_from_collection() -> None:
    """Exclude existing objects from later garbage collections: the libraries alone have a million of them."""
    gc.collect()
    gc.freeze()


def _forget_deepspeed_groups() -> None:
    """Reset the process groups that DeepSpeed would reuse for the next engine, which has other ranks."""
    from deepspeed import comm
    from deepspeed.utils import groups

    comm.comm.cdb = None
    groups._WORLD_GROUP = None
    groups._ALL_TO_ALL_GROUP = {}


class _Autocast(torch.autocast):
    """torch's autocast, with the meta device, which torch has no autocast for, treated as the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "meta" else device_type, *args, **kwargs)


def _autocast_is_on(device_type: str | None = None) -> bool:
    return False


def _autocast_dtype(device_type: str) -> torch.dtype:
    return torch.bfloat16


def _add_in_place(total_VD: Tensor, grad_CV: Tensor, _: Tensor, hidden_CD: Tensor) -> None:
    """What the head does on a CPU in bf16, where a GPU first makes the whole product."""
    total_VD.addmm_(grad_CV.t()[: len(total_VD)], hidden_CD.to(total_VD.dtype))


@contextmanager
def as_if(device: torch.device, shapes: Shapes) -> Iterator[None]:
    """Patch what depends on the device or on other ranks, and record on ``shapes``."""
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

    chunk = losses.CHUNK_BYTES[device.type]
    add = _add_in_place if device.type == "cpu" else losses._add_product_
    with (
        patch.object(losses, "_add_product_", add),
        patch.dict(losses.CHUNK_BYTES, {"meta": chunk}),
        # DeepSpeed asks the other ranks whether they run the same modules; no other rank answers here.
        patch.object(coordinator, "assert_ints_same_as_other_ranks", lambda _: None),
        patch.object(torch, "autocast", _Autocast),
        patch.object(torch, "is_autocast_enabled", _autocast_is_on),
        patch.object(torch, "get_autocast_dtype", _autocast_dtype),
        attention_of_shapes(device),
        # A compiled block is counted from the operations that it was compiled from.
        torch.compiler.set_stance("force_eager"),
        patch.object(showo, "compilable", lambda plan: plan),
        patch.object(losses, "_loss_and_gradient", _fused_loss),
        shapes,
    ):
        yield


def _fused_loss(logits: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the compiled passes over a chunk of logits allocate."""
    (positions, columns), (dtype, summed) = logits.shape, settings[-2:]
    gradient = torch.empty_like(logits, dtype=dtype)
    return logits.new_empty(positions), gradient, logits.new_empty(columns) if summed else None


class EngineOfShapes:
    """One rank's engine on shapes. Use it inside :func:`fake_ranks`.

    Args:
        config: of the run.
        device: kind of device of the run; this machine need not have it.
        every_micro_step: run all micro-steps of a window, instead of the first, one between and the last. The
            ones between are alike, in memory and in what they send.
    """

    def __init__(
        self, config: TrainConfig, device: torch.device, every_micro_step: bool = False
    ) -> None:
        self.config, self.device = deepcopy(config), device
        micro_steps = config.training.gradient_accumulation_steps
        self._run = micro_steps if every_micro_step else min(3, micro_steps)
        self._left_out = micro_steps - self._run
        self.config.training.gradient_accumulation_steps = self._run
        self.bf16 = uses_bf16_there(config, device)
        self.config.training.mixed_precision = "bf16" if self.bf16 else "fp32"
        self.shapes = Shapes(device)
        with as_if(device, self.shapes):
            self.shapes.phase("build", "weights")
            model = _model(self.config, device)
            self.shapes.phase("engine", "buffers")
            self.engine = engine_module().initialize(model, self.config, device)
            self._assign_state()
            self._mark_late_reduction()
        gc.collect()
        # ZeRO-3 records the order of the modules in its first step and prefetches weights in all later ones.
        self._learns = config.distributed.zero_stage == 3

    def _assign_state(self) -> None:
        """Assign the engine's storages to weights, optimizer and gradients.

        Weights go last: ZeRO-0 updates the weights themselves, which are also the optimizer's parameters.
        """
        optimizer = self.engine.optimizer
        inner = optimizer if isinstance(optimizer, Optimizer) else optimizer.optimizer
        for updated, state in inner.state.items():
            moments = [value for value in state.values() if isinstance(value, torch.Tensor)]
            self.shapes.assign("optimizer", [updated, *moments])
        # Sums of gradients that exist all the time: ZeRO-1's in fp32, and ZeRO-3's.
        for name in ("fp32_groups_gradients_flat", "grad_partitions_flat_buffer"):
            self.shapes.assign("gradients", tree_leaves(getattr(optimizer, name, [])))
        self.shapes.assign("weights", storages_of(self.engine.module))

    def _mark_late_reduction(self) -> None:
        """Begin a phase where DeepSpeed reduces after the backward pass: ZeRO-0, ZeRO-1 with fp32 sums."""
        reduce = self.engine.buffered_allreduce_fallback

        def late(*args: Any, **more: Any) -> None:
            self.shapes.phase("reduce", "buffers")
            reduce(*args, **more)

        self.engine.buffered_allreduce_fallback = late

    def held(self) -> dict[str, int]:
        """Bytes of each part that are live now."""
        return self.shapes.ledger.live()

    def step(self, batch: PackedBatch) -> StepProfile:
        """Run an optimizer step with ``batch`` in every micro-step; for ZeRO-3, one that prefetches."""
        shapes = self.shapes
        collectives = shapes.ledger.collectives
        with as_if(self.device, shapes):
            shapes.phase("start", "buffers")
            for _ in range(2 if self._learns else 1):
                first = len(collectives)
                repeated = self._window(on_meta(batch))
        self._learns = False
        gc.collect()
        peak, parts = shapes.ledger.peak("start")
        return StepProfile(self.held(), peak, parts, collectives[first:] + repeated)

    def _window(self, batch: PackedBatch) -> list[Collective]:
        """Run a window; returns the collectives of the micro-steps that were left out."""
        scale_F = torch.ones(len(FLOWS), device=META)
        between: list[Collective] = []
        for number in range(self._run):
            first = len(self.shapes.ledger.collectives)
            self._micro_step(batch, scale_F)
            if number == 1:
                between = self.shapes.ledger.collectives[first:]
        return between * self._left_out

    def _micro_step(self, batch: PackedBatch, scale_F: torch.Tensor) -> None:
        shapes, engine = self.shapes, self.engine
        shapes.phase("forward", "activations")
        with _logits_apart(engine.module.head, shapes):
            loss, _ = engine(batch, flow_scale_F=scale_F)
        shapes.phase("backward", "activations")
        engine.backward(loss)
        del loss
        # Allocations of the backward pass that are still live after it are gradients.
        for storage in shapes.survivors("backward"):
            shapes.ledger.part[storage] = "gradients"
        shapes.phase("step", "buffers")
        engine.step()


@contextmanager
def _logits_apart(head: nn.Module, shapes: Shapes) -> Iterator[None]:
    """Assign the head's allocations to ``logits``; they include its own gradient, which forward computes."""
    opened: list[Any] = []

    def begin(*_: Any) -> None:
        context = shapes.allocating("logits")
        context.__enter__()
        opened.append(context)

    def end(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    hooks = [head.register_forward_pre_hook(begin), head.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for context in opened:
            context.__exit__(None, None, None)


def uses_bf16_there(config: TrainConfig, device: torch.device) -> bool:
    """Whether the run would compute in bf16 on ``device``, which this machine need not have."""
    setting = config.training.mixed_precision
    if setting == "auto" and device.type == "cuda":
        return True
    return uses_bf16(setting, device)


def _model(config: TrainConfig, device: torch.device) -> ShowO:
    backend = "flash" if device.type == "cuda" else select_backend("auto", device)[0]
    return build_showo(config.model.showo, backend)
