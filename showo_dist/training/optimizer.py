"""The optimizer of a run, its learning rate over time, and averages of the weights.

AdamW and the schedule are those of docs/specification.md, section 8.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from showo_dist.checkpoint.slices import ADAMW_MOMENTS, EMA, KINDS, WEIGHT, Piece
from showo_dist.config.training import (
    LRSchedulerConfig,
    MuonParams,
    OptimizerConfig,
    OptimizerParams,
)
from showo_dist.models.backbone import EMBEDDINGS
from showo_dist.models.weights.initial import PROJECTOR
from showo_dist.training.muon import MOMENTUM, Muon, by_muon

_AT_ONCE = 1 << 24  # numbers of a tensor that averages and weights exchange at a time


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
    return len(shape_of(parameter)) > 1 and not any(table in name for table in EMBEDDINGS)


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole shape, also of a parameter that ZeRO-3 has sharded."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


Named = list[tuple[str, nn.Parameter]]


def parameter_groups(
    named: Named, params: OptimizerParams, projector_alone: bool = False
) -> list[dict]:
    """AdamW's groups in the model's own order: with decay, without, and those that stay as they are."""
    trained = [x for x in named if not projector_alone or x[0].startswith(PROJECTOR)]
    kept = [p for name, p in named if projector_alone and not name.startswith(PROJECTOR)]
    decayed = [p for name, p in trained if decays(name, p, params.no_decay)]
    spared = [p for name, p in trained if not decays(name, p, params.no_decay)]
    groups = [
        {"params": decayed, "weight_decay": params.weight_decay},
        {"params": spared, "weight_decay": 0.0},
        # They have moments too, so that engines and checkpoints need not know of them.
        {"params": kept, "weight_decay": 0.0, "lr": 0.0},
    ]
    return [group for group in groups if group["params"]]


def muon_group(parameters: list[nn.Parameter], muon: MuonParams) -> dict:
    """Muon's one group."""
    return {
        "params": parameters,
        "muon": True,
        "lr": muon.learning_rate,
        "momentum": muon.momentum,
        "weight_decay": muon.weight_decay,
        "ns_steps": muon.ns_steps,
        "adjust_lr": muon.adjust_lr,
    }


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    device: torch.device,
    bf16: bool,
    projector_alone: bool = False,
) -> Optimizer:
    """The optimizer of what is trained: Muon with AdamW, or AdamW alone.

    Args:
        model: of the run.
        config: section ``optimizer``.
        device: of the run.
        bf16: whether the forward pass computes in it.
        projector_alone: AdamW updates the CLIP projector, and leaves the other weights as they are.

    Raises:
        ValueError: ``optimizer.name`` is muon and no matrix is trained, or apex is not here.
    """
    # Frozen weights of a LoRA run get no optimizer state.
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.name == "adamw":
        groups = parameter_groups(named, config.params, projector_alone)
        return _adamw(groups, config.params, device)
    matrices = [p for name, p in named if by_muon(name, shape_of(p))]
    if not matrices:
        raise ValueError("optimizer.name = muon: no matrix of a block is trained; use adamw")
    others = [(name, p) for name, p in named if not by_muon(name, shape_of(p))]
    groups = [{**group, "muon": False} for group in parameter_groups(others, config.params)]
    groups.append(muon_group(matrices, config.muon))
    dtype = torch.bfloat16 if bf16 else torch.float32
    return Muon(groups, device, dtype, fused=True, **_adamw_settings(config.params))


def _adamw_settings(params: OptimizerParams) -> dict[str, Any]:
    return {
        "lr": params.learning_rate,
        "betas": (params.beta1, params.beta2),
        "eps": params.epsilon,
    }


def _adamw(groups: list[dict], params: OptimizerParams, device: torch.device) -> Optimizer:
    settings = _adamw_settings(params)
    if params.implementation == "torch":
        return torch.optim.AdamW(groups, fused=True, **settings)
    key = "optimizer.params.implementation = apex"
    if device.type != "cuda":
        raise ValueError(f"{key}: its kernels need an NVIDIA GPU; use torch")
    try:
        from apex.optimizers import FusedAdam
    except ImportError as error:  # PyPI's package of this name is another project
        raise ValueError(
            f"{key}: NVIDIA's apex is not installed here ({error}); use torch"
        ) from None
    return FusedAdam(groups, adam_w_mode=True, **settings)


def build_schedule(optimizer: Optimizer, schedule: LRSchedulerConfig, steps: int) -> LambdaLR:
    """Linear warm-up from 0, then cosine to 0 at ``steps``, or constant."""
    name = {"cosine": "cosine", "constant": "constant_with_warmup"}[schedule.scheduler]
    return get_scheduler(
        name, optimizer, num_warmup_steps=schedule.params.warmup_steps, num_training_steps=steps
    )


def load_schedule(schedule: LambdaLR, optimizer: Any, values: dict[str, Any]) -> str | None:
    """Continue a schedule at the step of a checkpoint, with the rates, warm-up and shape of the config.

    Args:
        schedule: built from the config, over ``optimizer``.
        optimizer: whose groups get the rates of that step.
        values: the checkpoint's state of the schedule.

    Returns:
        A line for the log when the config gives another rate at this step than the checkpoint had, else None.
    """
    # The checkpoint's own rates would silently override a changed config, so only its position is loaded.
    schedule.last_epoch, schedule._step_count = values["last_epoch"], values["_step_count"]
    rates = [
        base * shape(schedule.last_epoch)
        for base, shape in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    before, schedule._last_lr = values["_last_lr"], rates
    if before == rates:
        return None
    return (
        f"learning rate {rates[0]:.6g} by the config, {before[0]:.6g} in the checkpoint: the config's is "
        "used from here on"
    )


def total_norm(model: nn.Module) -> Tensor:
    """Norm of the whole gradient, before clipping."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def skip_flagged_steps(optimizer: Optimizer) -> None:
    """Make an optimizer's step change nothing while its attribute ``overflow`` is true."""

    def drop_gradients(optimizer: Any, args: tuple, kwargs: dict) -> None:
        # Without gradients AdamW skips a tensor entirely: no decay, no moment update, no step count.
        if getattr(optimizer, "overflow", False):
            optimizer.zero_grad()

    optimizer.register_step_pre_hook(drop_gradients)


def make_moments(optimizer: Optimizer, tensors: Iterable[Tensor], averaged: bool) -> None:
    """Make the state that the optimizer would make at its first step.

    Args:
        optimizer: without state.
        tensors: that it updates.
        averaged: also make the averages of the weights, which are now the weights themselves.
    """
    muon = _matrices(optimizer)
    for tensor in tensors:
        kinds = (MOMENTUM,) if id(tensor) in muon else ADAMW_MOMENTS
        state = {key: torch.zeros_like(tensor) for key in kinds}
        if averaged:
            state[EMA] = tensor.detach().clone()
        if not _counts_per_group(optimizer):
            # A tensor, on the device: the fused kernel increments it there.
            state["step"] = torch.tensor(0.0, device=tensor.device)
        optimizer.state[tensor] = state


def _matrices(optimizer: Optimizer) -> set[int]:
    """The ids of the tensors that Muon updates."""
    whole = {
        id(p) for group in optimizer.param_groups if group.get("muon") for p in group["params"]
    }
    return whole | {id(tensor) for tensor in getattr(optimizer, "shares", {})}


def step_count(optimizer: Optimizer, tensors: list[Tensor]) -> int:
    """The optimizer's own step count, which its bias correction depends on."""
    if _counts_per_group(optimizer):
        return int(optimizer.param_groups[0].get("step", 0))
    return int(optimizer.state[tensors[0]]["step"])


def set_step_count(optimizer: Optimizer, tensors: Iterable[Tensor], steps: int) -> None:
    """Set the step count of every group or tensor."""
    if _counts_per_group(optimizer):
        for group in optimizer.param_groups:
            group["step"] = steps
        return
    for tensor in tensors:
        optimizer.state[tensor]["step"].fill_(steps)


def _counts_per_group(optimizer: Optimizer) -> bool:
    """apex keeps one step count per group, torch one per tensor."""
    return not isinstance(optimizer, torch.optim.AdamW)


def kinds_in(state: Mapping[str, Any]) -> list[str]:
    """The kinds of tensors of a parameter: its weight, and what its optimizer's state has besides."""
    return [kind for kind in KINDS if kind == WEIGHT or kind in state]


def replicated(optimizer: Optimizer, name: str, parameter: nn.Parameter) -> Iterator[Piece]:
    """A whole weight and its moments, as every rank holds them where nothing is sharded."""
    state = optimizer.state[parameter]
    for kind in kinds_in(state):
        whole = parameter if kind == WEIGHT else state[kind]
        yield Piece(kind, name, tuple(parameter.shape), 0, whole.detach().view(-1))


class Ema:
    """An exponential moving average of the weights (EMA), in fp32.

    The averages are part of the optimizer's state, beside the moments: one tensor for each tensor that the
    optimizer updates. So ZeRO 1 to 3 shards them as it shards the moments, checkpoints hold them by parameter
    name, and at ZeRO-0 and in the torch engine, where nothing is sharded, every rank has all of them.

    Args:
        decay: upper bound of the part of an average that one update keeps.
        weights: fp32 tensors that the optimizer updates.
        averages: as long and shaped alike.

    Attributes:
        updates: number of updates so far; the first ones keep less, (1 + updates) / (10 + updates).
    """

    def __init__(self, decay: float, weights: list[Tensor], averages: list[Tensor]) -> None:
        self.decay, self.weights, self.averages = decay, weights, averages
        self.updates = 0
        self._readers: list[Callable[[], None]] = []

    @classmethod
    def of(
        cls, optimizer: Optimizer, tensors: Iterable[Tensor], decay: float | None
    ) -> Self | None:
        """The averages in the state of an optimizer; None without a decay."""
        if decay is None:
            return None
        weights = list(tensors)
        return cls(decay, weights, [optimizer.state[tensor][EMA] for tensor in weights])

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights; once after each optimizer step that changed them."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self.weights, 1.0 - decay)
        self.updates += 1

    def before_exchange(self, action: Callable[[], None]) -> None:
        """Call ``action``, which waits for readers of weights and averages, before they change places."""
        self._readers.append(action)

    @contextmanager
    def in_place_of_weights(self, refresh: Callable[[], None]) -> Iterator[None]:
        """Inside, the averages are where the weights are, and the weights where the averages are.

        Args:
            refresh: copies the optimizer's weights to where the model computes with them; collective.
        """
        # A step that was skipped did not wait for a checkpoint's copy.
        for action in self._readers:
            action()
        self._exchange()
        refresh()
        # Not in a finally block: after an error on one rank, the others would wait in refresh for it.
        yield
        self._exchange()
        refresh()

    @torch.no_grad()
    def _exchange(self) -> None:
        # Values and not storages: the engine and its checkpoints have views of these tensors.
        for weights, averages in zip(self.weights, self.averages, strict=True):
            # In parts: under ZeRO one tensor holds nearly all weights, and a copy of it may not fit.
            pairs = (tensor.view(-1).split(_AT_ONCE) for tensor in (weights, averages))
            for weight, average in zip(*pairs, strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)
