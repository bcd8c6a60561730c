"""The config of a tokenizer training run: ``TokenizerConfig``, one attribute per section."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from showo_dist.config.experiment import WandbConfig
from showo_dist.models.magvitv2 import MAGVITv2Config


@dataclass(kw_only=True)
class RunConfig:
    """Section ``experiment``: the folder of a run, and how often it saves, draws and logs."""

    project: str = "showo"
    """wandb project."""

    name: str = "tokenizer"
    """Name of the run."""

    output_dir: str = "runs/tokenizer"
    """Folder of the run: checkpoints, metrics, images, resolved config, and the result in `final`."""

    resume_from_checkpoint: bool | str | None = "latest"
    """`latest`: go on from the newest complete checkpoint in `output_dir`, if there is one; a path:
    from that one; false: start anew."""

    log_every: int = 50
    """Optimizer steps between two lines of metrics, at least 1."""

    eval_every: int = 1000
    """Optimizer steps between two evaluations with an image grid; 0: only at the end."""

    save_every: int = 1000
    """Optimizer steps between two checkpoints; 0: only at the end."""

    keep_last: int = 2
    """Checkpoints kept; 0: all."""


@dataclass(kw_only=True)
class ImageConfig:
    """Section ``dataset``: which images are learned. Any WebDataset shards with jpg/png members."""

    shards: Any = None
    """A path or brace pattern of tar shards, or a list of them."""

    validation_shards: Any = None
    """The same for images to evaluate on; null: the first images of `shards`, which are trained on."""

    validation_images: int = 64
    """Images of an evaluation."""

    num_workers: int = 0
    """Loader processes per rank; 0: load in the training process."""

    streams: int = 8
    """Canonical streams of the data order; keep it when a run is resumed."""

    window: int = 1000
    """Samples shuffled among each other in a stream; part of the data order, too."""

    max_bad_fraction: float = 0.05
    """Unreadable samples that a run puts up with, as a fraction of those tried (0 to 1), the first 200
    samples counting as 200: one early bad sample stops nothing."""

    cache_dir: str | None = None
    """Folder for the indices of shards that are remote or read-only, and for cached shards; null: the user's
    cache folder."""

    cache_gb: float = 0.0
    """Gigabytes of remote shards to keep there whole; 0: each sample is a request for its bytes."""

    retries: int = 5
    """How often a failed request is made again."""

    allow_pipe: bool = False
    """Run the commands of `pipe:` URLs."""


@dataclass(kw_only=True)
class LossConfig:
    """Section ``loss``: weights of the terms. The defaults of the last three are the published ones."""

    l1: float = 1.0
    """Mean absolute error of the pixels, which lie in [-1, 1]."""

    l2: float = 1.0
    """Mean squared error of the pixels."""

    commitment: float = 0.1
    """Distance of the latents from ±1."""

    sample_entropy: float = 0.1
    """Indecision of single places; raises it and each place becomes certain of its code."""

    codebook_entropy: float = 0.1
    """Even use of the codebook over the global batch. Too little beside `sample_entropy` collapses it."""

    codebook: Literal["bits", "joint"] = "bits"
    """What is used evenly: each `bits` for itself (published), or whole codes, `joint`, which also keeps
    the bits from repeating each other."""


@dataclass(kw_only=True)
class AdamWConfig:
    """Section ``optimizer``: AdamW; linear warm-up, then cosine to `final_fraction` of the rate."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    warmup_steps: int = 100
    final_fraction: float = 0.0
    """Learning rate of the last step as a fraction of the peak."""

    max_grad_norm: float | None = 1.0
    """Clip the gradient to this norm; null: no clipping."""


@dataclass(kw_only=True)
class LengthConfig:
    """Section ``training``: length, batch and precision."""

    max_train_steps: int = 100_000
    batch_size: int = 64
    """Images per optimizer step, over all ranks; a multiple of the number of ranks."""

    seed: int = 0
    """Seed of weights and data order."""

    mixed_precision: str = "auto"
    """`bf16`; `fp32`; `auto`: bf16 where the machine computes it fast, else fp32."""


@dataclass(kw_only=True)
class TokenizerConfig:
    """Everything a tokenizer training run can be told."""

    experiment: RunConfig = field(default_factory=RunConfig)
    model: MAGVITv2Config = field(default_factory=MAGVITv2Config)
    dataset: ImageConfig = field(default_factory=ImageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    training: LengthConfig = field(default_factory=LengthConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def check(self) -> None:
        """Raise ``ValueError``, one line per problem, naming the key, its value and what is allowed."""
        problems = _model_problems(self.model)
        problems += self._too_small()
        problems += [
            f"loss.{item.name} = {getattr(self.loss, item.name)}: expected 0 or more"
            for item in fields(self.loss)
            if item.name != "codebook" and getattr(self.loss, item.name) < 0
        ]
        if self.dataset.shards is None:
            problems.append("dataset.shards = None: expected the path of image shards")
        if self.training.mixed_precision not in ("auto", "bf16", "fp32"):
            problems.append(
                f"training.mixed_precision = {self.training.mixed_precision!r}: "
                "expected one of auto, bf16, fp32"
            )
        if problems:
            raise ValueError("\n".join(problems))

    def _too_small(self) -> list[str]:
        least = {
            "experiment.log_every": (self.experiment.log_every, 1),
            "experiment.eval_every": (self.experiment.eval_every, 0),
            "experiment.save_every": (self.experiment.save_every, 0),
            "dataset.validation_images": (self.dataset.validation_images, 1),
            "dataset.num_workers": (self.dataset.num_workers, 0),
            "dataset.cache_gb": (self.dataset.cache_gb, 0),
            "dataset.retries": (self.dataset.retries, 0),
            "optimizer.warmup_steps": (self.optimizer.warmup_steps, 0),
            "training.max_train_steps": (self.training.max_train_steps, 1),
            "training.batch_size": (self.training.batch_size, 1),
        }
        return [
            f"{key} = {value}: expected at least {lowest}"
            for key, (value, lowest) in least.items()
            if value < lowest
        ]


def _model_problems(model: MAGVITv2Config) -> list[str]:
    try:
        model.validate()
    except ValueError as error:
        return [f"model.{error}"]
    return []
