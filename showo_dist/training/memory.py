"""Less memory on the GPU: activations that are computed again, state that lives elsewhere."""

from typing import Any

from showo_dist.config.training import DistributedConfig
from showo_dist.models.showo import ShowO


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
