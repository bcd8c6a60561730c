"""Plain torch as an :class:`~showo_dist.training.engine.Engine`: one process, or DistributedDataParallel."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from showo_dist.checkpoint.slices import Piece, even_share
from showo_dist.config import TrainConfig
from showo_dist.models.showo import ShowO
from showo_dist.runtime.numerics import uses_bf16
from showo_dist.training.optimizer import (
    Ema,
    build_optimizer,
    build_schedule,
    load_schedule,
    make_moments,
    replicated,
    set_step_count,
    step_count,
    total_norm,
)


class TorchEngine:
    """Fulfils :class:`~showo_dist.training.engine.Engine` with nothing sharded.

    Gradients are averaged over ranks and micro-steps, as DeepSpeed does. Weights stay fp32; bf16 is
    autocast.

    Args:
        model: on its device.
        optimizer: over the model's trained parameters.
        schedule: of the optimizer's learning rate, advanced once per optimizer step.
        micro_steps: micro-steps per optimizer step.
        max_norm: clip the gradient to this norm; None: no clipping.
        bf16: compute in bf16.
        reduce_bf16: send gradients in bf16; they are fp32 as the weights.
        ema_decay: of the averages of the weights; None: no averages.

    Attributes:
        ema: the averages.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LambdaLR,
        *,
        micro_steps: int,
        max_norm: float | None,
        bf16: bool,
        reduce_bf16: bool = False,
        ema_decay: float | None = None,
    ) -> None:
        self.module: Any = model
        self.optimizer, self.lr_scheduler = optimizer, schedule
        self._micro_steps, self._max_norm, self._bf16 = micro_steps, max_norm, bf16
        self._device_type = next(model.parameters()).device.type
        self._done, self.applied = 0, False
        self._norm = math.nan
        self._ddp: DistributedDataParallel | None = None
        if dist.is_initialized():
            self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
            if reduce_bf16:
                self._ddp.register_comm_hook(None, _sent_in_bf16)
        self._named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        # As for DeepSpeed: a checkpoint can be restored before the first step.
        make_moments(optimizer, self._trained(), averaged=ema_decay is not None)
        self.ema = Ema.of(optimizer, self._trained(), ema_decay)

    @property
    def description(self) -> str:
        return "torch DDP" if self._ddp is not None else "torch, one process"

    def _trained(self) -> list[Tensor]:
        return [parameter for _, parameter in self._named]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Gradients are exchanged in the backward of the window's last micro-step only.
        local = self._ddp is not None and not self.at_boundary
        with (
            self._ddp.no_sync() if self._ddp is not None and local else nullcontext(),
            torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            return (self._ddp or self.module)(*args, **kwargs)

    @property
    def at_boundary(self) -> bool:
        return self._done + 1 == self._micro_steps

    def backward(self, loss: Tensor) -> None:
        (loss / self._micro_steps).backward()

    def parameter_norms(self) -> dict[str, float]:
        nan = float("nan")
        return {n: nan if p.grad is None else float(p.grad.norm()) for n, p in self._named}

    def step(self) -> None:
        if not self.at_boundary:
            self._done += 1
            return
        self._done = 0
        # DDP has averaged the gradients: the norm is the same on all ranks, and all of them skip alike.
        norm = total_norm(self.module)
        self._norm = float(norm)
        self.applied = math.isfinite(self._norm)
        if self.applied:
            if self._max_norm:
                nn.utils.clip_grads_with_norm_(self._trained(), self._max_norm, norm)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
            self.lr_scheduler.step()
        self.optimizer.zero_grad()

    def grad_norm(self) -> float:
        return self._norm

    @property
    def learning_rate(self) -> float:
        return float(self.lr_scheduler.get_last_lr()[0])

    @property
    def mean_over_ranks(self) -> bool:
        return True  # DDP divides while it copies into its buckets

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._bf16 else torch.float32

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def _pieces(self) -> list[Piece]:
        return [
            piece
            for name, parameter in self._named
            for piece in replicated(self.optimizer, name, parameter)
        ]

    def owned(self, rank: int, world: int) -> list[Piece]:
        return even_share(self._pieces(), rank, world)

    def optimizer_steps(self) -> int:
        return step_count(self.optimizer, self._trained())

    @property
    def orthogonalised(self) -> int:
        return getattr(self.optimizer, "orthogonalised", 0)

    def restore(self, read: Callable[[Piece], Tensor], steps: int) -> None:
        for piece in self._pieces():
            piece.values_N.copy_(read(piece))
        set_step_count(self.optimizer, self._trained(), steps)
        if self.ema is not None:
            self.ema.updates = steps

    def before_update(self, action: Callable[[], None]) -> None:
        self.optimizer.register_step_pre_hook(lambda *_: action())
        if self.ema is not None:
            self.ema.before_exchange(action)

    def averaged(self) -> AbstractContextManager[None]:
        assert self.ema is not None, "no training.ema.decay"
        return self.ema.in_place_of_weights(lambda: None)

    def schedule_state(self) -> dict[str, Any]:
        return self.lr_scheduler.state_dict()

    def load_schedule(self, values: dict[str, Any]) -> str | None:
        return load_schedule(self.lr_scheduler, self.optimizer, values)


def _sent_in_bf16(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's own hook, which DDP refuses by its name where gloo sends, although gloo can."""
    return bf16_compress_hook(state, bucket)


def build_torch_engine(model: ShowO, config: TrainConfig, device: torch.device) -> TorchEngine:
    """The engine of a config without DeepSpeed; DDP where a process group exists."""
    model.to(device)
    if config.model.gradient_checkpointing:
        model.recompute_activations(config.model.gradient_checkpointing_every)
    if config.model.compile:
        model.compile_blocks()
    bf16 = uses_bf16(config.training.mixed_precision, device)
    optimizer = build_optimizer(
        model, config.optimizer, device, bf16, config.trains_projector_alone
    )
    return TorchEngine(
        model,
        optimizer,
        build_schedule(optimizer, config.lr_scheduler, config.schedule_steps),
        micro_steps=config.training.gradient_accumulation_steps,
        max_norm=config.training.max_grad_norm,
        bf16=bf16,
        reduce_bf16=bf16 and config.distributed.gradient_reduction_dtype == "bf16",
        ema_decay=config.training.ema.decay,
    )
