"""Plain torch in the place of DeepSpeed's engine: one process, or DistributedDataParallel."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from showo_dist.config import TrainConfig
from showo_dist.models.showo import ShowO
from showo_dist.runtime.precision import uses_bf16
from showo_dist.training.deepspeed_engine import recompute_activations
from showo_dist.training.optimizer import build_optimizer, build_schedule


class TorchEngine:
    """What :class:`~showo_dist.training.step.Stepper` asks of an engine, with nothing sharded.

    Gradients are averaged over ranks and micro-steps, as DeepSpeed does. Weights stay fp32; bf16 is
    autocast.

    Args:
        model: on its device.
        optimizer: over the model's parameters.
        schedule: of the optimizer's learning rate, advanced once per optimizer step.
        micro_steps: micro-steps per optimizer step.
        max_norm: clip the gradient to this norm; None: no clipping.
        bf16: compute in bf16.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        *,
        micro_steps: int,
        max_norm: float | None,
        bf16: bool,
    ) -> None:
        self.module, self.optimizer, self.lr_scheduler = model, optimizer, schedule
        self._micro_steps, self._max_norm, self._bf16 = micro_steps, max_norm, bf16
        self._device_type = next(model.parameters()).device.type
        self._done, self._applied = 0, False
        self._ranks = None
        if dist.is_initialized():
            self._ranks = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward; gradients are exchanged in the backward of the window's last micro-step alone."""
        local = self._ranks is not None and not self.is_gradient_accumulation_boundary()
        with (
            self._ranks.no_sync() if self._ranks is not None and local else nullcontext(),
            torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            return (self._ranks or self.module)(*args, **kwargs)

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the micro-step under way is the last of its window."""
        return self._done + 1 == self._micro_steps

    def backward(self, loss: Tensor) -> None:
        """Add this micro-step's share of the gradient."""
        (loss / self._micro_steps).backward()

    def step(self) -> None:
        """End a micro-step; the last of a window clips and updates the weights.

        An optimizer whose attribute ``overflow`` is true has its step left out, as DeepSpeed does.
        """
        if not self.is_gradient_accumulation_boundary():
            self._done += 1
            return
        self._done = 0
        self._applied = not getattr(self.optimizer, "overflow", False)
        if self._applied:
            if self._max_norm:
                nn.utils.clip_grad_norm_(self.module.parameters(), self._max_norm)
            self.optimizer.step()
            self.lr_scheduler.step()
        self.optimizer.zero_grad()

    def was_step_applied(self) -> bool:
        """Whether the last window changed the weights."""
        return self._applied


def build_torch_engine(model: ShowO, config: TrainConfig, device: torch.device) -> TorchEngine:
    """The engine of a config without DeepSpeed; of all ranks where a process group exists."""
    model.to(device)
    if config.model.gradient_checkpointing:
        recompute_activations(model, config.model.gradient_checkpointing_every)
    optimizer = build_optimizer(model, config.optimizer.params)
    return TorchEngine(
        model,
        optimizer,
        build_schedule(optimizer, config.lr_scheduler, config.training.max_train_steps),
        micro_steps=config.training.gradient_accumulation_steps,
        max_norm=config.training.max_grad_norm,
        bf16=uses_bf16(config.training.mixed_precision, device),
    )
