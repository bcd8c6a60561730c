"""Rules about what a run starts from, what of it is trained, and where its state lives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from showo_dist.config.schema import TrainConfig

# Linear layers of a block that peft can adapt.
ADAPTABLE = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")


def adapters_have_a_base(config: TrainConfig) -> Iterator[str]:
    """LoRA leaves most weights as they are, so they must be worth something."""
    if config.lora.rank and config.start_from is None:
        yield (
            f"lora.rank = {config.lora.rank}: adapters need trained weights below them; set "
            "experiment.init_from"
        )


def adapted_layers_exist(config: TrainConfig) -> Iterator[str]:
    """The head and the table are trained whole or not at all."""
    if not config.lora.rank:
        return
    names = config.lora.target_modules
    unknown = [name for name in names if name not in ADAPTABLE]
    if unknown or not names:
        shown = unknown[0] if unknown else names
        yield f"lora.target_modules = {shown}: expected some of {', '.join(ADAPTABLE)}"


def moments_have_a_source(config: TrainConfig) -> Iterator[str]:
    """Moments are those of the same parameters."""
    experiment = config.experiment
    if not experiment.init_optimizer:
        return
    if not experiment.init_from:
        yield "experiment.init_optimizer = True: set experiment.init_from to a checkpoint of ours"
    if config.lora.rank:
        yield (
            "experiment.init_optimizer = True: adapters are new and have no moments; "
            "set it to false, or lora.rank to 0"
        )


def offload_fits_the_stage(config: TrainConfig) -> Iterator[str]:
    """What DeepSpeed can move off the GPU depends on what it shards."""
    distributed, stage = config.distributed, config.distributed.zero_stage
    optimizer, parameters = distributed.offload_optimizer, distributed.offload_param
    if optimizer == "cpu" and stage < 1:
        yield f"distributed.offload_optimizer = cpu: needs distributed.zero_stage 1 to 3, not {stage}"
    if parameters != "none" and stage < 3:
        yield (
            f"distributed.offload_param = {parameters}: needs distributed.zero_stage 3, not {stage}"
        )
    if parameters == "nvme" and not distributed.offload_path:
        yield "distributed.offload_path is null: nvme needs a folder on the disk to use"


STARTING_RULES = (
    adapters_have_a_base,
    adapted_layers_exist,
    moments_have_a_source,
    offload_fits_the_stage,
)
