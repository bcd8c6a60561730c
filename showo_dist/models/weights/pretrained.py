"""Show-o in the released folder format: ``config.json`` beside safetensors or ``pytorch_model.bin``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.folder import (
    CONFIG_NAME,
    SAFETENSORS_NAME,
    check_fit,
    inner_folder,
    local_folder,
    read_json,
)
from showo_dist.models.weights.initial import InitialWeights
from showo_dist.models.weights.sources import LORA_KEY, open_weights
from showo_kernels import select_backend

PHI_1_5 = (
    "microsoft/phi-1_5"  # its sizes are PhiConfig's defaults, so nothing has to be fetched for them
)


def backbone_config(showo: ShowoConfig) -> PhiConfig:
    """The decoder's config: from ``llm_config``, else from ``llm_model_path``.

    Raises:
        ValueError: the language model's config cannot be read, or neither key is set.
    """
    if showo.llm_config is not None:
        return _phi_config({**showo.llm_config, "vocab_size": showo.vocab_size})
    if showo.llm_model_path is None:
        raise ValueError(
            "model.showo.llm_model_path and model.showo.llm_config are both null: set one"
        )
    if showo.llm_model_path == PHI_1_5:
        return PhiConfig(vocab_size=showo.vocab_size)
    try:
        return PhiConfig.from_pretrained(showo.llm_model_path, vocab_size=showo.vocab_size)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.showo.llm_model_path = {showo.llm_model_path}: {_first_line(error)}"
        ) from None


def _phi_config(values: dict[str, Any]) -> PhiConfig:
    try:
        return PhiConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.showo.llm_config: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def build_showo(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """A model of the config's sizes with random weights (from torch's global generator)."""
    return ShowO(backbone_config(showo), showo.clip_dim if showo.w_clip_vit else 0, attention)


def from_language_model(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """What training starts from without Show-o weights: the language model with a longer table.

    The rows of the new tokens, the q/k norms and the projector are freshly drawn. With ``llm_config`` all of
    the model is.

    Raises:
        ValueError: the language model cannot be read.
    """
    model = build_showo(showo, attention)
    if showo.llm_config is not None:
        return model
    try:
        language = PhiForCausalLM.from_pretrained(showo.llm_model_path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.showo.llm_model_path = {showo.llm_model_path}: {_first_line(error)}"
        ) from None
    with torch.no_grad():
        target = model.showo.state_dict()
        for name, tensor in language.state_dict().items():
            rows = min(len(tensor), len(target[name]))
            target[name][:rows].copy_(tensor[:rows])
    return model


def load_showo(
    source: str | Path, *, attention: str = "auto", device: torch.device | str = "cpu"
) -> ShowO:
    """A model from a released folder, an export or checkpoint of ours, or a hub id.

    Adapters of a LoRA run are merged into the weights that they were trained over.

    Args:
        source: the folder or id.
        attention: backend name; ``auto`` picks the best for the device.
        device: where to put it.

    Raises:
        FileNotFoundError: no such folder or a file of it is missing.
        ValueError: a file cannot be read, or the weights do not fit ``config.json``.
    """
    folder = local_folder(source)
    backend, _ = select_backend(attention, device, torch.float32)
    model = empty_model(read_config(folder), backend)
    weights = open_weights(folder)
    check_fit(folder, model.state_dict(), weights.meta)
    materialise(model, weights.read)
    return model.to(device)


def empty_model(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """A model of the config's sizes on the meta device: names and shapes."""
    with torch.device("meta"):
        return build_showo(showo, attention)


def materialise(model: ShowO, read: Callable[[str], Tensor]) -> None:
    """Give a meta model its weights by name, and its rotary table, which checkpoints do not hold."""
    weights = {name: read(name) for name in model.state_dict()}
    model.load_state_dict(weights, strict=True, assign=True)
    rotary = model.showo.model.rotary_emb
    model.showo.model.rotary_emb = type(rotary)(config=model.config)


def initial_weights(
    showo: ShowoConfig,
    source: str | Path,
    seed: int,
    model: ShowO | None = None,
    check: bool = True,
) -> InitialWeights:
    """What a run that starts from ``source`` begins with.

    Args:
        showo: sizes of the new model.
        source: folder or hub id; adapters in it are merged.
        seed: of rows that the source does not have.
        model: a model of these sizes, if there is one already.
        check: compare a checkpoint's files with their checksums first.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_showo`, or sizes differ that may not.
    """
    folder = local_folder(source)
    model = model or empty_model(showo)
    return InitialWeights(
        showo,
        {name: tensor.to("meta") for name, tensor in model.state_dict().items()},
        open_weights(folder, check),
        read_config(folder),
        seed=seed,
        std=model.config.initializer_range,
    )


def read_config(folder: Path) -> ShowoConfig:
    """Sizes from ``config.json``; keys that training alone needs are left out."""
    values = read_json(inner_folder(folder) / CONFIG_NAME)
    known = {key: values[key] for key in ShowoConfig.__dataclass_fields__ if key in values}
    return ShowoConfig(**known)


def config_json(showo: ShowoConfig, model: ShowO) -> str:
    """``config.json`` with the released keys, and the backbone's sizes so that no other file is needed."""
    values: dict[str, Any] = {
        "_class_name": "Showo",
        "w_clip_vit": showo.w_clip_vit,
        "vocab_size": showo.vocab_size,
        "llm_vocab_size": showo.llm_vocab_size,
        "llm_model_path": showo.llm_model_path,
        "codebook_size": showo.codebook_size,
        "num_vq_tokens": showo.num_vq_tokens,
        "num_new_special_tokens": showo.num_new_special_tokens,
        "mask_token_id": showo.vocab_size - 1,
        "clip_dim": showo.clip_dim,
        "clip_tokens": showo.clip_tokens,
        "llm_config": _plain_config(model.config),
    }
    if model.adapters is not None:
        values[LORA_KEY] = model.adapters
    return json.dumps(values, indent=2) + "\n"


def _plain_config(config: PhiConfig) -> dict[str, Any]:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "hidden_act",
        "layer_norm_eps",
        "initializer_range",
        "rope_parameters",
    )
    return {name: getattr(config, name) for name in names}


def save_showo(model: ShowO, showo: ShowoConfig, folder: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, the weights last.

    Args:
        model: with all of its weights here (not a ZeRO-3 shard).
        showo: the section ``model.showo`` of its config.
        folder: made if missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(config_json(showo, model))
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / SAFETENSORS_NAME, metadata={"format": "pt"})
