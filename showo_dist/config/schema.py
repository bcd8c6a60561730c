"""The whole config of a training run: ``TrainConfig``, one attribute per section; checked by ``rules``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from showo_dist.config.dataset import DataConfig, DatasetConfig
from showo_dist.config.experiment import (
    ExperimentConfig,
    FaultConfig,
    InferenceConfig,
    LoggingConfig,
    LoraConfig,
    WandbConfig,
)
from showo_dist.config.model import ModelConfig
from showo_dist.config.training import (
    DistributedConfig,
    LRSchedulerConfig,
    OptimizerConfig,
    TrainingConfig,
)

# Top-level keys that the published scripts take on the command line -> where they live here.
PUBLISHED_TOP_LEVEL_KEYS: dict[str, str] = {
    "batch_size": "training.batch_size",
    "guidance_scale": "training.guidance_scale",
    "generation_timesteps": "training.generation_timesteps",
    "validation_prompts_file": "dataset.params.validation_prompts_file",
    "pretrained_model_path": "model.showo.pretrained_model_path",
    "mode": "inference.mode",
    "prompt": "inference.prompt",
    "image_path": "inference.image_path",
    "inpainting_mask_path": "inference.inpainting_mask_path",
    "extra_direction": "inference.extra_direction",
    "offset": "inference.offset",
    "mmu_image_root": "inference.mmu_image_root",
    "question": "inference.question",
    "max_new_tokens": "inference.max_new_tokens",
}

# Published keys that are accepted and change nothing -> why.
WITHOUT_EFFECT: dict[str, str] = {
    "dataset.combined_loader_mode": "streams are endless",
    "dataset.params.batch_size": "training.batch_size_* decide",
    "dataset.params.persistent_workers": "streams are endless, so loader processes always persist",
    "dataset.params.pin_memory": "packed batches go to a GPU through page-locked memory",
    "dataset.preprocessing.center_crop": "images are always resized on the short side and cropped",
    "dataset.preprocessing.random_flip": "captions say left and right, so images are never mirrored",
    "experiment.max_train_examples_mmu": "streams are endless, training.max_train_steps decides",
    "experiment.max_train_examples_t2i": "streams are endless, training.max_train_steps decides",
}


@dataclass(kw_only=True)
class TrainConfig:
    """All settings of a run, under the published sections and keys where those exist."""

    ALIASES: ClassVar[Mapping[str, str]] = PUBLISHED_TOP_LEVEL_KEYS

    wandb: WandbConfig = field(default_factory=WandbConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scheduler: LRSchedulerConfig = field(default_factory=LRSchedulerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    fault: FaultConfig = field(default_factory=FaultConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    compat: Literal["none", "reference"] = "none"
    """`reference`: behave like the published code where a trained result depends on it
    (docs/specification.md, section 11)."""

    @property
    def start_from(self) -> str | None:
        """Show-o weights to start from (path or hub id); None: the language model alone."""
        if self.experiment.init_from:
            return self.experiment.init_from
        showo = self.model.showo
        return showo.pretrained_model_path if showo.load_from_showo else None

    @property
    def text_tokenizer(self) -> str | None:
        """Where the text tokenizer lies (path or hub id)."""
        return self.model.showo.tokenizer_path or self.model.showo.llm_model_path

    @property
    def trains_projector_alone(self) -> bool:
        """Whether the CLIP projector alone is updated; LoRA has settings of its own."""
        if self.lora.rank or self.optimizer.trained is not None:
            return self.optimizer.trained == "projector"
        return self.model.showo.w_clip_vit and self.dataset.und_type == "llava_pretrain"

    @property
    def schedule_steps(self) -> int:
        """Optimizer steps of the whole learning-rate schedule."""
        return self.lr_scheduler.steps or self.training.max_train_steps

    @property
    def data_seed(self) -> int:
        """Seed of the data order."""
        params = self.dataset.params
        return self.training.seed if params.wds_seed is None else params.wds_seed

    @property
    def shuffle_window(self) -> int:
        """Samples shuffled among each other in one stream."""
        return self.data.window or self.dataset.params.shuffle_buffer_size

    @property
    def shards_state(self) -> bool:
        """Whether the engine keeps fp32 weights apart from the module (DeepSpeed, ZeRO 1 to 3)."""
        return self.distributed.engine == "deepspeed" and self.distributed.zero_stage > 0
