"""DeepSpeed as an :class:`~showo_dist.training.engine.Engine`: ZeRO 0 to 3, offload, bf16."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import bf16_optimizer, torch_autocast
from deepspeed.runtime.utils import get_global_norm_of_tensors
from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn

from showo_dist.checkpoint.slices import Piece
from showo_dist.config import TrainConfig, active_flows
from showo_dist.config.training import DistributedConfig
from showo_dist.models.showo import ShowO
from showo_dist.runtime.numerics import uses_bf16
from showo_dist.sequences import PackedBatch
from showo_dist.training import deepspeed_state as state
from showo_dist.training.optimizer import (
    Ema,
    build_optimizer,
    build_schedule,
    load_schedule,
    skip_flagged_steps,
    total_norm,
)


class DeepSpeedEngine:
    """Fulfils :class:`~showo_dist.training.engine.Engine`.

    DeepSpeed skips a step whose gradient norm is not finite where it wraps the optimizer (ZeRO 1 to 3, and
    bf16). At ZeRO-0 in fp32 it uses the client's optimizer as it is and measures no norm: there this class
    measures it, and flags the optimizer (``overflow``, the attribute that DeepSpeed asks for).

    Args:
        raw: of :func:`initialize`.
        stage: of ZeRO, for the log.
        ema_decay: of the averages of the weights; None: no averages.

    Attributes:
        ema: the averages.
    """

    def __init__(self, raw: Any, stage: int, ema_decay: float | None = None) -> None:
        self.raw, self.module = raw, raw.module
        self.ema = Ema.of(state.inner_optimizer(raw), state.updated_tensors(raw), ema_decay)
        self.description = f"ZeRO-{stage}"
        self._unwrapped = isinstance(raw.optimizer, torch.optim.Optimizer)
        self._norm: float | None = None
        if self._unwrapped:
            skip_flagged_steps(raw.optimizer)
        else:
            _judge_by_norm(raw.optimizer)
            _reduce_in_place(raw.optimizer)

    def __call__(self, batch: PackedBatch, *, flow_scale_F: Tensor) -> tuple[Tensor, Tensor]:
        return self.raw(batch, flow_scale_F=flow_scale_F)

    @property
    def at_boundary(self) -> bool:
        return self.raw.is_gradient_accumulation_boundary()

    def backward(self, loss: Tensor) -> None:
        self.raw.backward(loss)

    def parameter_norms(self) -> dict[str, float]:
        return state.gradient_norms(self.raw)

    def step(self) -> None:
        # Before the raw step, which clips: the norm to report and to judge is the unclipped one.
        if self._unwrapped and self.at_boundary:
            self._norm = float(total_norm(self.module))
            self.raw.optimizer.overflow = not math.isfinite(self._norm)
        self.raw.step()
        if self.ema is not None and self.applied:
            self.ema.update()

    def grad_norm(self) -> float:
        norm = self._norm if self._unwrapped else self.raw.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    @property
    def applied(self) -> bool:
        return self.raw.was_step_applied()

    @property
    def learning_rate(self) -> float:
        return self.raw.get_lr()[0]

    @property
    def mean_over_ranks(self) -> bool:
        # Asked of the engine: older versions do not know the key, and `distributed.deepspeed` may set it.
        return getattr(self.raw, "gradient_average", True)

    @property
    def dtype(self) -> torch.dtype:
        if self.raw.torch_autocast_enabled():
            return self.raw.torch_autocast_dtype()
        return self.raw.get_data_types()[0]

    def train(self, mode: bool = True) -> None:
        self.raw.train(mode)

    def owned(self, rank: int, world: int) -> list[Piece]:
        return state.owned(self.raw, rank, world)

    def optimizer_steps(self) -> int:
        return state.optimizer_steps(self.raw)

    @property
    def orthogonalised(self) -> int:
        return getattr(state.inner_optimizer(self.raw), "orthogonalised", 0)

    def restore(self, read: Callable[[Piece], Tensor], steps: int) -> None:
        state.restore(self.raw, read, steps)
        if self.ema is not None:
            self.ema.updates = steps

    def before_update(self, action: Callable[[], None]) -> None:
        state.inner_optimizer(self.raw).register_step_pre_hook(lambda *_: action())
        if self.ema is not None:
            self.ema.before_exchange(action)

    def averaged(self) -> AbstractContextManager[None]:
        assert self.ema is not None, "no training.ema.decay"
        return self.ema.in_place_of_weights(lambda: state.refresh(self.raw))

    def schedule_state(self) -> dict[str, Any]:
        return self.raw.lr_scheduler.state_dict()

    def load_schedule(self, values: dict[str, Any]) -> str | None:
        return load_schedule(self.raw.lr_scheduler, self.raw.optimizer, values)


def _judge_by_norm(optimizer: Any) -> None:
    """Let a step of ZeRO 1 to 3 wait for the device once, for the gradient's norm on the host.

    DeepSpeed reads the norm on the device to judge it, again per parameter group to clip, and leaves it there
    for the log. ZeRO 1 and 2 before that look for infinities in all gradients, with an exchange and a wait of
    their own: the norm over all ranks shows the same.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        groups = optimizer._get_norm_groups
        optimizer._get_norm_groups = lambda: list(torch.stack(groups()).cpu())
        return
    if not isinstance(optimizer, DeepSpeedZeroOptimizer):
        return  # ZeRO-1 with fp32 sums: see _adapt_bf16_optimizer
    norm = optimizer.scaled_global_norm
    optimizer.scaled_global_norm = lambda: norm().cpu()
    if not optimizer.cpu_offload:
        optimizer.check_overflow = lambda **_: None


def _reduce_in_place(optimizer: Any) -> None:
    """Let ZeRO 1 and 2 reduce the gradients of a bucket where they are, instead of a copy of the bucket."""
    if not isinstance(optimizer, DeepSpeedZeroOptimizer):
        return
    reduce, copied = optimizer.allreduce_bucket, optimizer.flatten

    def flatten(tensors: list[Tensor]) -> Tensor:
        found = end_to_end(tensors)
        return copied(tensors) if found is None else found

    def reduced(*args: Any, **settings: Any) -> Tensor:
        optimizer.flatten = flatten
        try:
            return reduce(*args, **settings)
        finally:
            optimizer.flatten = copied

    optimizer.allreduce_bucket = reduced


def end_to_end(tensors: list[Tensor]) -> Tensor | None:
    """A view of tensors that lie end to end in memory, as those of a bucket do; None of others."""
    first, size = tensors[0], 0
    for tensor in tensors:
        storage = tensor.untyped_storage()._cdata == first.untyped_storage()._cdata
        place = tensor.storage_offset() == first.storage_offset() + size
        if not (storage and place and tensor.is_contiguous()):
            return None
        size += tensor.numel()
    return first.as_strided((size,), (1,))


def build_deepspeed_engine(
    model: ShowO, config: TrainConfig, device: torch.device
) -> DeepSpeedEngine:
    """Wrap the model, its optimizer and schedule. The process group must exist.

    Raises:
        ValueError: the machine cannot do what the config asks for.
    """
    raw = initialize(model, config, device)
    return DeepSpeedEngine(raw, config.distributed.zero_stage, config.training.ema.decay)


def initialize(model: ShowO, config: TrainConfig, device: torch.device) -> Any:
    """DeepSpeed's own engine, its optimizer state made.

    Raises:
        ValueError: the machine cannot do what the config asks for.
    """
    assert dist.is_initialized()
    check_offload(config.distributed)
    if config.model.gradient_checkpointing:
        model.recompute_activations(config.model.gradient_checkpointing_every)
    if config.model.compile:
        model.compile_blocks()
        _gather_whole_blocks(model)
    bf16 = uses_bf16(config.training.mixed_precision, device)
    optimizer = build_optimizer(
        model, config.optimizer, device, bf16, config.trains_projector_alone
    )
    schedule = build_schedule(optimizer, config.lr_scheduler, config.schedule_steps)
    _without_inference_helper()
    _adapt_bf16_optimizer()
    _forget_earlier_engines(config.distributed.zero_stage)
    raw, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(config, device),
        dist_init_required=False,
    )
    # ZeRO-3 leaves buffers of a model that was sharded part by part on the CPU: a copy in every forward.
    place = next(model.parameters()).device  # meta where a plan is made
    for buffer in model.buffers() if place.type == "cuda" else ():
        buffer.data = buffer.data.to(place)
    # The state must exist before a checkpoint is restored into it.
    state.prepare(raw, averaged=config.training.ema.decay is not None)
    return raw


def _gather_whole_blocks(model: ShowO) -> None:
    """Let ZeRO-3 gather and release the weights of a block around it, not in hooks of the modules inside it.

    A compiled block is one graph and cannot contain such hooks. Other stages ignore this mark.
    """
    for block in model.blocks:
        set_z3_leaf_module(block, True)


def sharder(config: TrainConfig, device: torch.device) -> Callable[[nn.Module], None]:
    """What shards a part of a model that was just loaded, under ZeRO-3; see :func:`.engine.sharder`."""
    _without_inference_helper()
    settings = deepspeed_config(config, device)

    def shard(part: nn.Module) -> None:
        """Keep this rank's share of each parameter; rank 0's values count."""
        deepspeed.zero.Init(module=part, config_dict_or_path=settings)

    return shard


def _forget_earlier_engines(stage: int) -> None:
    """Undo what DeepSpeed leaves in a process that had another engine, as a plan has."""
    # It would reduce in the formats of an engine that used autocast.
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    # ZeRO-3 replaces this function for good, with one that takes more kernels.
    own = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if stage != 3 and own is not None:
        torch.nn.functional.linear = own


def _without_inference_helper() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives at every start.

    Only inference uses them, and a run that is killed while it holds the build's lock would make the next
    start wait for it.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def _adapt_bf16_optimizer() -> None:
    """Let a step of ZeRO-1 with fp32 sums wait for the device once, and keep its memory reports from stdout.

    DeepSpeed's class for it reads the norm on the device to judge it, and again to clip.
    """
    norm = get_global_norm_of_tensors
    bf16_optimizer.get_global_norm_of_tensors = lambda *args, **more: norm(*args, **more).cpu()
    bf16_optimizer.see_memory_usage = lambda *_, **__: None


def deepspeed_config(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's settings for a config; ``distributed.deepspeed`` is merged over them.

    ZeRO-0 computes bf16 by autocast over fp32 weights: the bf16 optimizer that DeepSpeed would wrap there
    decays the weights once while it is built, and its fp32 copies cannot be read by parameter name.
    """
    # DeepSpeed gets a decision, not "auto": all ranks must compute in the same format.
    bf16 = uses_bf16(config.training.mixed_precision, device)
    sharded = config.distributed.zero_stage > 0
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": sum(f.batch_size for f in active_flows(config).values()),
        "gradient_accumulation_steps": config.training.gradient_accumulation_steps,
        "gradient_clipping": config.training.max_grad_norm or 0.0,
        # A mean would be one more pass over the gradients, which the losses' scale undoes. ZeRO-3 has no sum.
        "gradient_allreduce_op": "mean" if config.distributed.zero_stage == 3 else "sum",
        # ZeRO-1 adds each gradient to its fp32 sum as soon as it exists, and keeps no copy in bf16.
        "bf16": {"enabled": bf16 and sharded, "immediate_grad_update": True},
        "torch_autocast": {"enabled": bf16 and not sharded, "dtype": "bfloat16"},
        "zero_optimization": {
            "stage": config.distributed.zero_stage,
            # gloo has no asynchronous reduction on a side stream
            "overlap_comm": device.type == "cuda",
            "contiguous_gradients": True,
            **_offload_settings(config.distributed),
        },
        # torch's fused AdamW runs on the host as well, compiled ahead
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # DeepSpeed's throughput timer waits for the device twice per micro-step.
        "timers": {"throughput": {"enabled": False}},
    }
    if bf16:
        settings |= _gradient_formats(config.distributed)
    return _merged(settings, config.distributed.deepspeed)


def _gradient_formats(distributed: DistributedConfig) -> dict[str, Any]:
    """DeepSpeed's keys for the formats of a bf16 run's gradients; its own default is bf16 for both."""
    formats: dict[str, Any] = {"communication_data_type": distributed.gradient_reduction_dtype}
    if distributed.zero_stage:
        formats["data_types"] = {"grad_accum_dtype": distributed.gradient_accumulation_dtype}
    return formats


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def check_offload(distributed: DistributedConfig) -> None:
    """Raise ``ValueError`` when this machine lacks the library that DeepSpeed offloads to a disk with."""
    if distributed.offload_param != "nvme":
        return
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ValueError(
            "distributed.offload_param = nvme: DeepSpeed's async_io cannot be built here; it needs "
            "libaio with its headers (libaio-dev) and a C++ compiler on every host"
        )


def _offload_settings(distributed: DistributedConfig) -> dict[str, Any]:
    """DeepSpeed's ``zero_optimization`` keys for state that is kept off the GPU; empty for none."""
    wanted = {
        "offload_optimizer": distributed.offload_optimizer,
        "offload_param": distributed.offload_param,
    }
    settings: dict[str, Any] = {}
    for key, device in wanted.items():
        if device != "none":
            settings[key] = {"device": device, "pin_memory": distributed.offload_pin_memory}
        if device == "nvme":
            settings[key]["nvme_path"] = distributed.offload_path
    return settings
