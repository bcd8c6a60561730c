"""The tokenizer's ``config.json``, and writing its folder."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from showo_dist.models.folder import CONFIG_NAME, SAFETENSORS_NAME, read_json
from showo_dist.models.magvitv2.config import MAGVITv2Config, StackConfig


def save(folder: str | Path, config: MAGVITv2Config, state: dict[str, Tensor]) -> None:
    """Write config and weights; the weights last, so that a broken write is seen as missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(asdict(config), indent=2) + "\n")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(contiguous, folder / SAFETENSORS_NAME, metadata={"format": "pt"})


def read_config(folder: Path) -> MAGVITv2Config:
    """Sizes from ``config.json``; a key that is absent has the released model's value.

    Raises:
        FileNotFoundError, ValueError: the file is missing, not JSON, or has a key that is not known.
    """
    path = folder / CONFIG_NAME
    values = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    _check_keys(path, values, MAGVITv2Config)
    for stack in ("encoder", "decoder"):
        if stack in values:
            _check_keys(path, values[stack], StackConfig)
            values[stack] = StackConfig(**values[stack])
    return MAGVITv2Config(**values)


def _check_keys(path: Path, values: dict[str, Any], schema: type) -> None:
    known = [item.name for item in fields(schema)]
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}; known are {', '.join(known)}")
