"""What DeepSpeed compiles, where, and the lock that a killed compilation leaves behind.

Less memory on the GPU: activations that are computed again, state that lives elsewhere.

The DeepSpeed engine of a run: ZeRO stage, precision, accumulation and clipping from the config."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from showo_dist.config import TrainConfig, active_flows
from showo_dist.config.training import DistributedConfig
from showo_dist.models.showo import ShowO
from showo_dist.runtime.precision import uses_bf16
from showo_dist.training import engine_state
from showo_dist.training.optimizer import build_optimizer, build_schedule

# A lock this old belongs to a process that died: compiling takes one to two minutes.
STALE_S = 600.0


def use_own_folder() -> Path:
    """Compile into the environment's own folder, unless told otherwise: other environments build others."""
    default = str(Path(sys.prefix) / "torch_extensions")
    return Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", default))


def clear_stale_locks(folder: Path, stale_s: float = STALE_S) -> list[Path]:
    """Remove locks that nobody holds any more; torch would wait for them for ever. Returns them."""
    stale = []
    for lock in folder.glob("*/lock"):
        try:
            if time.time() - lock.stat().st_mtime > stale_s:
                lock.unlink()
                stale.append(lock)
        except FileNotFoundError:
            continue  # its owner was quicker
    return stale


def without_inference_helper() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives at every start; before its engine is made.

    Only inference uses them. A run that is killed while it holds the lock of the build would
    make the next start wait for the lock.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def recompute_activations(model: ShowO, every: int) -> None:
    """Keep no activations of the first of every ``every`` blocks; backward computes them again."""
    model.showo.gradient_checkpointing_enable({"use_reentrant": False})
    for number, block in enumerate(model.showo.model.layers):
        block.gradient_checkpointing = number % every == 0


def check_offload(distributed: DistributedConfig) -> None:
    """Find out before the model is built whether this machine can offload to a disk.

    Raises:
        ValueError: it lacks what DeepSpeed reads with.
    """
    if distributed.offload_param != "nvme":
        return
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ValueError(
            "distributed.offload_param = nvme: DeepSpeed's async_io cannot be built here; it needs "
            "libaio with its headers (libaio-dev) and a C++ compiler on every host"
        )


def offload_settings(distributed: DistributedConfig) -> dict[str, Any]:
    """DeepSpeed's ``zero_optimization`` keys for what does not stay on the GPU; empty when all does."""
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


def samples_per_micro_step(config: TrainConfig) -> int:
    """Samples of all flows that one rank takes in one micro-step."""
    return sum(flow.batch_size for flow in active_flows(config).values())


def deepspeed_config(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's settings for a config; ``distributed.deepspeed`` goes over them.

    bf16 is autocast over fp32 weights at ZeRO-0: the optimizer that DeepSpeed would wrap there decays the
    weights once while it is built, and keeps its fp32 copies out of reach of the accessors.
    """
    bf16 = uses_bf16(config.training.mixed_precision, device)
    sharded = config.distributed.zero_stage > 0
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": samples_per_micro_step(config),
        "gradient_accumulation_steps": config.training.gradient_accumulation_steps,
        "gradient_clipping": config.training.max_grad_norm or 0.0,
        "bf16": {"enabled": bf16 and sharded},
        "torch_autocast": {"enabled": bf16 and not sharded, "dtype": "bfloat16"},
        "zero_optimization": {
            "stage": config.distributed.zero_stage,
            # gloo has no asynchronous reduction on a side stream
            "overlap_comm": device.type == "cuda",
            "contiguous_gradients": True,
            **offload_settings(config.distributed),
        },
        # torch's fused AdamW runs on the host as well, compiled ahead
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    return _merged(settings, config.distributed.deepspeed)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def build_engine(model: ShowO, config: TrainConfig, device: torch.device) -> Any:
    """Wrap the model, its optimizer and schedule. The process group must exist.

    Raises:
        ValueError: the machine cannot do what the config asks for.
    """
    assert dist.is_initialized()
    check_offload(config.distributed)
    if config.model.gradient_checkpointing:
        recompute_activations(model, config.model.gradient_checkpointing_every)
    offloaded = config.distributed.offload_optimizer != "none"
    optimizer = build_optimizer(model, config.optimizer.params, on_host=offloaded)
    schedule = build_schedule(optimizer, config.lr_scheduler, config.training.max_train_steps)
    without_inference_helper()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(config, device),
        dist_init_required=False,
    )
    engine_state.prepare(engine)
    return engine
