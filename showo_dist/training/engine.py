"""The DeepSpeed engine of a run: ZeRO stage, precision, accumulation and clipping from the config."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from showo_dist.config import TrainConfig, active_flows
from showo_dist.models.showo import ShowO
from showo_dist.runtime.precision import uses_bf16
from showo_dist.training import engine_state
from showo_dist.training.extensions import without_inference_helper
from showo_dist.training.memory import check_offload, offload_settings, recompute_activations
from showo_dist.training.optimizer import build_optimizer, build_schedule


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
