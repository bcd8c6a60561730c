"""The config of a tokenizer training run: ``TokenizerConfig``, one attribute per section."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from showo_dist.config.experiment import WandbConfig
from showo_dist.config.hints import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    BELOW_ONE,
    FRACTION,
    out_of_range,
)
from showo_dist.models.magvitv2 import MAGVITv2Config


@dataclass(kw_only=True)
class RunConfig:
    """Section ``experiment``: the folder of a run, and how often it logs, evaluates and saves."""

    project: str = "showo"
    """wandb project."""

    name: str = "tokenizer"
    """Name of the run."""

    output_dir: str = "runs/tokenizer"
    """Folder of the run: checkpoints, metrics, images, config, and the trained tokenizer in `final`."""

    resume_from_checkpoint: bool | str | None = "latest"
    """`latest`: resume from the newest complete checkpoint in `output_dir`, if there is one; a path: resume
    from that checkpoint; false: start from scratch."""

    log_every: Annotated[int, AT_LEAST_ONE] = 50
    """Optimizer steps between two log lines, at least 1."""

    eval_every: Annotated[int, AT_LEAST_ZERO] = 1000
    """Optimizer steps between two evaluations, each with an image grid; 0: only at the end."""

    save_every: Annotated[int, AT_LEAST_ZERO] = 1000
    """Optimizer steps between two checkpoints; 0: only at the end."""

    keep_last: Annotated[int, AT_LEAST_ZERO] = 2
    """Number of checkpoints to keep; 0: all."""


@dataclass(kw_only=True)
class ImageConfig:
    """Section ``dataset``: the training images. Any WebDataset shards with jpg, png or webp members."""

    shards: Any = None
    """A path or brace pattern of tar shards, or a list of them."""

    validation_shards: Any = None
    """Shards to evaluate on; null: the first images of `shards`, which are also trained on."""

    validation_images: Annotated[int, AT_LEAST_ONE] = 64
    """Number of images of an evaluation."""

    num_workers: Annotated[int, AT_LEAST_ZERO] = 0
    """Loader processes per rank; 0: load in the training process."""

    streams: Annotated[int, AT_LEAST_ONE] = 8
    """Number of canonical streams of the data order; do not change it when a run is resumed."""

    window: Annotated[int, AT_LEAST_ONE] = 1000
    """Number of consecutive samples of a stream that are shuffled; do not change it when a run is resumed."""

    max_bad_fraction: Annotated[float, FRACTION] = 0.05
    """Largest fraction of unreadable samples (0 to 1); above it the run ends with an error. Until 200 samples
    are read, the fraction is taken of 200, so that one early bad sample does not end the run."""

    cache_dir: str | None = None
    """Folder for indexes of remote or read-only shards, and for cached shards; null: the user's cache
    folder."""

    cache_gb: Annotated[float, AT_LEAST_ZERO] = 0.0
    """Gigabytes of whole remote shards to cache; 0: request the bytes of each sample."""

    retries: Annotated[int, AT_LEAST_ZERO] = 5
    """Retries of a failed request."""

    timeout_s: Annotated[float, ABOVE_ZERO] = 60.0
    """Seconds that a sample may wait for its remote shard, all retries together."""

    allow_pipe: bool = False
    """Whether `pipe:` URLs may run their commands."""


@dataclass(kw_only=True)
class LossConfig:
    """Section ``loss``: weights of the terms. Those of commitment and entropies are published values."""

    l1: Annotated[float, AT_LEAST_ZERO] = 1.0
    """Mean absolute error of the pixels, which are in [-1, 1]."""

    l2: Annotated[float, AT_LEAST_ZERO] = 1.0
    """Mean squared error of the pixels."""

    commitment: Annotated[float, AT_LEAST_ZERO] = 0.1
    """Squared distance of the latents from ±1."""

    sample_entropy: Annotated[float, AT_LEAST_ZERO] = 0.1
    """Entropy of the code at one position, which is minimised: a larger weight gives surer codes."""

    codebook_entropy: Annotated[float, AT_LEAST_ZERO] = 0.1
    """Entropy of the codes over the global batch, which is maximised: a larger weight gives more even use of
    the codebook. Too small a weight beside `sample_entropy` collapses the codebook."""

    codebook: Literal["bits", "joint"] = "bits"
    """Entropy that `codebook_entropy` weighs: `bits`, of each bit by itself (published), or `joint`, of whole
    codes, which also keeps bits from repeating each other."""


@dataclass(kw_only=True)
class AdamWConfig:
    """Section ``optimizer``: AdamW; cosine decay to `final_fraction` of the rate, times a linear warm-up."""

    learning_rate: Annotated[float, AT_LEAST_ZERO] = 1e-4
    beta1: Annotated[float, BELOW_ONE] = 0.9
    beta2: Annotated[float, BELOW_ONE] = 0.99
    weight_decay: Annotated[float, AT_LEAST_ZERO] = 0.0
    warmup_steps: Annotated[int, AT_LEAST_ZERO] = 100
    final_fraction: Annotated[float, FRACTION] = 0.0
    """Learning rate at the end as a fraction of the peak."""

    max_grad_norm: Annotated[float | None, ABOVE_ZERO] = 1.0
    """Clip the gradient to this norm; null: no clipping."""


@dataclass(kw_only=True)
class LengthConfig:
    """Section ``training``: length, batch and precision."""

    max_train_steps: Annotated[int, AT_LEAST_ONE] = 100_000
    batch_size: Annotated[int, AT_LEAST_ONE] = 64
    """Images per optimizer step, over all ranks; a multiple of the number of ranks."""

    seed: Annotated[int, AT_LEAST_ZERO] = 0
    """Seed of the initial weights and the data order."""

    mixed_precision: str = "auto"
    """`bf16`, `fp32`, or `auto`: bf16 where the machine computes it fast, else fp32."""


@dataclass(kw_only=True)
class TokenizerConfig:
    """The whole config of a tokenizer training run."""

    experiment: RunConfig = field(default_factory=RunConfig)
    model: MAGVITv2Config = field(default_factory=MAGVITv2Config)
    dataset: ImageConfig = field(default_factory=ImageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    training: LengthConfig = field(default_factory=LengthConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def check(self) -> None:
        """Raise ``ValueError``, one line per problem, naming the key, its value and what is allowed."""
        problems = [*_model_problems(self.model), *out_of_range(self)]
        if self.dataset.shards is None:
            problems.append("dataset.shards = None: expected the path of image shards")
        if self.training.mixed_precision not in ("auto", "bf16", "fp32"):
            problems.append(
                f"training.mixed_precision = {self.training.mixed_precision!r}: "
                "expected one of auto, bf16, fp32"
            )
        if problems:
            raise ValueError("\n".join(problems))


def _model_problems(model: MAGVITv2Config) -> list[str]:
    try:
        model.validate()
    except ValueError as error:
        return [f"model.{error}"]
    return []
