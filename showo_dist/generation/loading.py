"""Which networks a model folder needs, and how it is meant to be used."""

from dataclasses import replace
from math import isqrt
from pathlib import Path

import torch

from showo_dist.config import TrainConfig, load_file
from showo_dist.generation.sampling import SamplingOptions
from showo_dist.models.clip import ClipTower
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.folder import CONFIG_NAME, local_folder
from showo_dist.models.weights.pretrained import load_showo, read_config
from showo_dist.runtime.precision import uses_bf16
from showo_dist.sequences.masking import mask_schedule
from showo_kernels import select_backend

TRAINING_CONFIG = "config.yaml"
# Rounds and guidance of the released models by the side of their images (docs/specification.md, section 9).
_RELEASED_SAMPLING = {256: (16, 1.75), 512: (50, 5.0)}


def sampling_options(config: TrainConfig) -> SamplingOptions:
    """How ``training.*`` says that images are generated."""
    training = config.training
    return SamplingOptions(
        steps=training.generation_timesteps,
        guidance=training.guidance_scale,
        temperature=training.generation_temperature,
        schedule=mask_schedule(training.mask_schedule),
    )


def read_model_config(source: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """The config of a model: our own beside the weights, else made from a released ``config.json``.

    Args:
        source: a checkpoint or export of ours, a released folder, or a hub id.
        overrides: ``key=value`` settings that go before it.

    Raises:
        ValueError: neither file is there, or one cannot be read; it is named.
        FileNotFoundError: no such folder and no such hub repository.
    """
    path = Path(source) / TRAINING_CONFIG
    if path.is_file():
        return load_file(path, TrainConfig, overrides or [], check=False)
    if Path(source).is_absolute() and not (Path(source) / CONFIG_NAME).is_file():
        raise ValueError(
            f"{path}: missing; expected a checkpoint of a training run, or a released folder with "
            f"{CONFIG_NAME}"
        )
    return _released_config(local_folder(source), overrides or [])


def _released_config(folder: Path, overrides: list[str]) -> TrainConfig:
    """The config that the released demo files hold for such a model, with changes."""
    showo = read_config(folder)
    asked = load_file(None, TrainConfig, overrides, check=False)
    side = isqrt(showo.num_vq_tokens) * asked.model.vq_model.downsample
    steps, guidance = _RELEASED_SAMPLING.get(side, _RELEASED_SAMPLING[256])
    own = {
        "dataset.preprocessing.resolution": side,
        "dataset.params.resolution": side,
        "training.generation_timesteps": steps,
        "training.guidance_scale": guidance,
    }
    layers = [*(f"{key}={value}" for key, value in own.items()), *overrides]
    config = load_file(None, TrainConfig, layers, check=False)
    named = config.model.showo.tokenizer_path
    config.model.showo = replace(showo, tokenizer_path=named or showo.tokenizer_path)
    return config


def load_model(
    source: str | Path, config: TrainConfig, device: torch.device, precision: str
) -> ShowO:
    """Show-o in eval mode.

    Args:
        source: the folder or hub id.
        config: names the attention backend.
        device: where to put it.
        precision: ``auto`` is bf16 on a GPU that has it and fp32 on a CPU; or ``bf16``, ``fp32``.

    Raises:
        FileNotFoundError, ValueError: the weights are missing, cannot be read, or do not fit.
    """
    half = precision == "bf16" or (device.type == "cuda" and uses_bf16(precision, device))
    dtype = torch.bfloat16 if half else torch.float32
    backend, _ = select_backend(config.model.attention, device, dtype)
    model = load_showo(source, attention="auto", device=device).to(dtype).eval()
    model.attention = backend
    rotary = model.showo.model.rotary_emb  # its frequencies stay fp32
    model.showo.model.rotary_emb = type(rotary)(config=model.config).to(device)
    return model


def load_clip(config: TrainConfig, source: str | None, device: torch.device) -> ClipTower | None:
    """The CLIP tower of a model that sees images as CLIP features, else None.

    Raises:
        ValueError: it cannot be read.
    """
    if not config.model.showo.w_clip_vit:
        return None
    return ClipTower.from_pretrained(source or config.model.clip_model_name).to(device)


def text_tokenizer(config: TrainConfig, source: str | Path) -> str:
    """Where the text tokenizer lies.

    Raises:
        ValueError: the config names none.
    """
    path = config.text_tokenizer
    if path is None:
        raise ValueError(f"{source}: its config names no text tokenizer; name one")
    return path


def question_style(config: TrainConfig) -> str:
    """As the model was tuned: LLaVA conversations, or, of captions alone, the published demo's question."""
    captions_alone = config.dataset.und_type == "captioning" and not config.model.showo.w_clip_vit
    return "demo" if captions_alone else "llava"
