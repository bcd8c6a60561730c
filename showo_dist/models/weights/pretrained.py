"""Show-o from a folder in the released format, and the ``config.json`` of such a folder."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_origin

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from showo_dist.config.hints import describe, fields_of, members
from showo_dist.config.model import ShowoConfig
from showo_dist.config.schema import TrainConfig
from showo_dist.models.backbone import block_of, fill_buffers, unknown_fields
from showo_dist.models.showo import ShowO, build_showo, empty_model
from showo_dist.models.weights.folder import (
    CONFIG_NAME,
    check_fit,
    from_transformers,
    inner_folder,
    local_folder,
    naming,
    read_json,
)
from showo_dist.models.weights.sources import LORA_KEY, open_weights
from showo_kernels import select_backend

SETTINGS_KEY = "settings"  # of config.json, where some are not usual
ASKED = (
    "dataset.und_type",
    "dataset.add_system_prompt",
    "dataset.chat_template",
    "dataset.preprocessing.max_seq_length",
    "training.down_scale",
    "training.resize_back",
    "model.vq_model.downsample",
)


def from_language_model(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """A model with the weights of a language model, the start of Show-o's first training stage.

    Rows of new tokens, q/k norms and the projector are initialised at random from torch's global generator;
    with ``llm_config`` all weights are. A language model whose head is its table gives the values of both.

    Raises:
        ValueError: the language model cannot be read, or has not all weights.
    """
    model = build_showo(showo, attention)
    if showo.llm_config is not None or showo.llm_model_path is None:
        return model
    with naming("model.showo.llm_model_path", showo.llm_model_path):
        language = from_transformers(AutoModelForCausalLM, showo.llm_model_path)
    with torch.no_grad():
        target = model.showo.state_dict()
        for name, tensor in language.state_dict().items():
            # Only tables differ in length: Show-o has rows for special tokens and codes after the text.
            rows = min(len(tensor), len(target[name]))
            target[name][:rows].copy_(tensor[:rows])
    return model


def load_showo(
    source: str | Path, *, attention: str = "auto", device: torch.device | str = "cpu"
) -> ShowO:
    """Load a model from a released folder, an export, a training checkpoint or a hub id.

    Adapters of a LoRA run are merged into their base weights.

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
    weights = open_weights(folder)
    model = described_model(folder, weights.meta, backend)
    check_fit(folder, model.state_dict(), weights.meta)
    materialise(model, weights.read)
    return model.to(device)


def materialise(
    model: ShowO,
    read: Callable[[str], Tensor],
    shard: Callable[[nn.Module], None] | None = None,
) -> None:
    """Fill a meta model with weights by name, part by part, and compute buffers that no checkpoint holds.

    Args:
        model: on the meta device.
        read: gives one whole weight.
        shard: called with each part (a block, or a module outside of the blocks) once it is filled, to keep
            this rank's share of it alone: then never more than the shares and one part are in memory.
    """

    def fill(prefix: str, part: nn.Module) -> None:
        weights = {name: read(prefix + name) for name in part.state_dict()}
        part.load_state_dict(weights, strict=True, assign=True)

    fill_parts(model, fill, shard)


def fill_parts(
    model: ShowO,
    fill: Callable[[str, nn.Module], None],
    shard: Callable[[nn.Module], None] | None = None,
) -> None:
    """Call ``fill`` with the prefix of the names in each part, and the part; then ``shard`` with the part."""
    fill_buffers(model.showo)
    for prefix, part in _parts(model):
        fill(prefix, part)
        if shard is not None:
            shard(part)


def _parts(model: ShowO) -> Iterator[tuple[str, nn.Module]]:
    """The blocks, and the other modules that hold weights themselves, with the prefixes of their names."""
    blocks = {id(block) for block in model.blocks}
    inside = {id(module) for block in model.blocks for module in block.modules()}
    for name, module in model.named_modules():
        own = any(True for _ in module.parameters(recurse=False)) and id(module) not in inside
        if own or id(module) in blocks:
            yield f"{name}.", module


def read_config(folder: Path) -> ShowoConfig:
    """Sizes from ``config.json``; keys that only training needs are left out.

    Raises:
        FileNotFoundError, ValueError: naming the file, and the key with a value of another type.
    """
    path = inner_folder(folder) / CONFIG_NAME
    values = read_json(path)
    for key, hint in fields_of(ShowoConfig).items():
        if key in values and not _has_type(values[key], hint):
            raise ValueError(f"{path}: {key} = {values[key]!r}: expected {describe(hint)}")
    return ShowoConfig(**{key: values[key] for key in fields_of(ShowoConfig) if key in values})


def described_model(folder: Path, found: Mapping[str, Tensor], attention: str = "sdpa") -> ShowO:
    """Build the model that ``config.json`` describes, on the meta device.

    Args:
        folder: with ``config.json``.
        found: its weights, whose number and sizes bound what the file may ask for.
        attention: backend name.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_config`, or its sizes cannot be those of a model.
    """
    showo = read_config(folder)
    _check_sizes(inner_folder(folder) / CONFIG_NAME, showo, found)
    try:
        return empty_model(showo, attention)
    except OSError:  # of the disk or the hub, where llm_model_path is read
        raise
    except Exception as error:  # transformers and torch raise unrelated types on impossible sizes
        path, reason = inner_folder(folder) / CONFIG_NAME, " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: gives no model ({type(error).__name__}: {reason}); check its sizes and llm_config"
        ) from error


# Fields of backbones that may be any number, whatever the weights: positions, windows, ids of tokens.
_COUNTS_NO_WEIGHTS = re.compile(r"position_embeddings|window|chunk_size|token_id")


def _check_sizes(path: Path, showo: ShowoConfig, found: Mapping[str, Tensor]) -> None:
    """Refuse sizes that the weights cannot have, before memory is used: a file may hold any number."""
    total = sum(tensor.numel() for tensor in found.values())
    backbone = showo.llm_config or {}
    settings = {key: value for key, value in backbone.items() if key != "model_type"}
    for problem in unknown_fields(backbone.get("model_type", "phi"), settings):
        raise ValueError(f"{path}: llm_config.{problem}")
    sizes = {key: getattr(showo, key) for key in fields_of(ShowoConfig)}
    sizes |= {f"llm_config.{key}": value for key, value in backbone.items()}
    for key, value in sizes.items():
        if isinstance(value, int) and value > total and not _COUNTS_NO_WEIGHTS.search(key):
            raise ValueError(
                f"{path}: {key} = {value}: more than its weights have numbers, {total}"
            )
    layers = len({block_of(name) for name in found} - {None})
    asked = backbone.get("num_hidden_layers", layers)
    if asked != layers:
        raise ValueError(
            f"{path}: llm_config.num_hidden_layers = {asked!r}: its weights have {layers} layers"
        )
    rotary = backbone.get("rope_parameters")
    share = rotary.get("partial_rotary_factor", 1) if isinstance(rotary, dict) else 1
    if not (isinstance(share, int | float) and 0 <= share <= 1):
        raise ValueError(
            f"{path}: llm_config.rope_parameters.partial_rotary_factor = {share!r}: 0 to 1"
        )


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the type of a field of ``ShowoConfig``."""
    return any(type(value) is (get_origin(member) or member) for member in members(hint))


def asked_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings of a run that tools need to ask its model as it was trained, where they are not usual."""
    usual = TrainConfig()
    values = {key: attrgetter(key)(config) for key in ASKED}
    return {key: value for key, value in values.items() if value != attrgetter(key)(usual)}


def read_settings(folder: Path) -> dict[str, Any]:
    """:func:`asked_settings` as ``config.json`` records them; nothing in a released folder.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, or the entry is of another kind.
    """
    path = inner_folder(folder) / CONFIG_NAME
    found = read_json(path).get(SETTINGS_KEY, {})
    if not isinstance(found, dict) or not set(found) <= set(ASKED):
        raise ValueError(
            f"{path}: {SETTINGS_KEY} = {found!r}: expected an object with the keys {', '.join(ASKED)}"
        )
    return found


def config_json(
    showo: ShowoConfig, model: ShowO, settings: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """``config.json`` with the released keys, and the backbone's sizes so that no other file is needed.

    Args:
        showo: sizes.
        model: of these sizes.
        settings: :func:`asked_settings` of the run.
    """
    values: dict[str, Any] = {
        "_class_name": "Showo",
        "w_clip_vit": showo.w_clip_vit,
        "vocab_size": showo.rows,
        "llm_vocab_size": showo.llm_vocab_size,
        "llm_model_path": showo.llm_model_path,
        "codebook_size": showo.codebook_size,
        "num_vq_tokens": showo.num_vq_tokens,
        "num_new_special_tokens": showo.num_new_special_tokens,
        "mask_token_id": showo.rows - 1,
        "clip_dim": showo.clip_dim,
        "clip_tokens": showo.clip_tokens,
        "llm_config": _plain_config(model.config),
    }
    if settings:
        values[SETTINGS_KEY] = dict(settings)
    if model.adapters is not None:
        values[LORA_KEY] = model.adapters
    return json.dumps(values, indent=2) + "\n"


def _plain_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that the decoder's sizes and numbers depend on, as ``llm_config``."""
    if config.model_type == "phi":
        return {name: getattr(config, name) for name in _PHI_FIELDS}
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)} | _OURS
    own = [field.name for field in dataclasses.fields(type(config)) if field.name not in common]
    values = config.to_dict()
    return {"model_type": config.model_type, **{name: values[name] for name in own}}


_PHI_FIELDS = (
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
# Set by Show-o, whatever the language model says.
_OURS = {"vocab_size", "tie_word_embeddings", "use_cache"}
_OURS |= {f"{kind}_token_id" for kind in ("bos", "eos", "pad")}
