"""The one contract between a training step and whatever runs it: DeepSpeed's engine or plain torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from showo_dist.checkpoint.slices import Piece
from showo_dist.config import TrainConfig
from showo_dist.models.showo import ShowO
from showo_dist.sequences import PackedBatch


class Engine(Protocol):
    """A model with its optimizer and schedule on all ranks of a run.

    A window is the micro-steps of one optimizer step; each of them is a call, :meth:`backward` and
    :meth:`step`. Gradients are averaged over micro-steps and, with :attr:`mean_over_ranks`, over ranks; else
    they are summed over ranks. Every rank calls all methods in the same order.

    Attributes:
        module: the model; under ZeRO-3 its parameters are sharded.
    """

    module: ShowO

    @property
    def mean_over_ranks(self) -> bool:
        """Whether backward averages gradients over ranks, instead of adding them."""

    @property
    def description(self) -> str:
        """Kind of engine and sharding, for the log."""

    def __call__(self, batch: PackedBatch, *, flow_scale_F: Tensor) -> tuple[Tensor, Tensor]:
        """Forward: the total to call :meth:`backward` on, and the loss sums of the flows (see ``ShowO``)."""

    @property
    def at_boundary(self) -> bool:
        """Whether the current micro-step is the last of its window."""

    def backward(self, loss: Tensor) -> None:
        """Add this micro-step's share of the gradient."""

    def parameter_norms(self) -> dict[str, float]:
        """Gradient norm of every parameter, between the last backward of a window and its step."""

    def step(self) -> None:
        """End a micro-step; the last of a window clips and updates the weights, unless the gradient's norm is
        not finite: then weights, moments and learning rate stay as they are, on all ranks."""

    def grad_norm(self) -> float:
        """Norm of the last window's whole gradient before clipping."""

    @property
    def applied(self) -> bool:
        """Whether the last window changed the weights."""

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the forward pass."""

    def train(self, mode: bool = True) -> Any:
        """Put the model into training or evaluation mode."""

    def owned(self, rank: int, world: int) -> list[Piece]:
        """This rank's part of weights and moments: together the ranks have every element once."""

    def optimizer_steps(self) -> int:
        """The optimizer's own step count, which AdamW's bias correction depends on."""

    @property
    def orthogonalised(self) -> int:
        """Matrices that Muon has orthogonalised since the engine was built; 0 with AdamW."""

    def restore(self, read: Callable[[Piece], Tensor], steps: int) -> None:
        """Fill this rank's weights and moments.

        Args:
            read: gives the flat fp32 values of a piece of this rank's memory.
            steps: the optimizer's step count.
        """

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model computes with the averaged weights (``training.ema``); collective."""

    def before_update(self, action: Callable[[], None]) -> None:
        """Call ``action`` before every optimizer step that changes weights and moments."""

    def schedule_state(self) -> dict[str, Any]:
        """State of the learning-rate schedule."""

    def load_schedule(self, state: dict[str, Any]) -> str | None:
        """Continue the config's schedule at the step of ``state``; a line for the log if the rate changes."""


def sharder(config: TrainConfig, device: torch.device) -> Callable[[nn.Module], None] | None:
    """What keeps a rank's share of each part of a model while it is loaded; None without ZeRO-3.

    The process group must exist.
    """
    if config.distributed.engine == "torch" or config.distributed.zero_stage != 3:
        return None
    from showo_dist.training import deepspeed_engine

    return deepspeed_engine.sharder(config, device)


def build_engine(model: ShowO, config: TrainConfig, device: torch.device) -> Engine:
    """The engine that ``distributed.engine`` names. The process group must exist.

    Raises:
        ValueError: the machine cannot do what the config asks for.
    """
    assert dist.is_initialized()
    # Imported where needed: neither engine should cost the other its import.
    if config.distributed.engine == "torch":
        from showo_dist.training.torch_engine import build_torch_engine

        return build_torch_engine(model, config, device)
    # DeepSpeed takes seconds to import.
    from showo_dist.training.deepspeed_engine import build_deepspeed_engine

    return build_deepspeed_engine(model, config, device)
