"""The released folder format: ``config.json`` beside weights, whole or in shards, local or on the hub."""

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

CONFIG_NAME = "config.json"
SAFETENSORS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TORCH_NAME = "pytorch_model.bin"  # the older releases


def local_folder(source: str | Path) -> Path:
    """``source`` itself when it is a folder, else the local copy of that hub repository.

    Raises:
        FileNotFoundError: it is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        files = [CONFIG_NAME, INDEX_NAME, TORCH_NAME, "model*.safetensors"]
        return Path(snapshot_download(str(source), allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{source}: no such folder, and no such hub repository ({reason})"
        ) from error


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        FileNotFoundError, ValueError: it is missing or not JSON; the file is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; a model folder needs it")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SAFETENSORS_NAME).is_file():
        return [folder / SAFETENSORS_NAME]
    if (folder / INDEX_NAME).is_file():
        names = set(read_json(folder / INDEX_NAME)["weight_map"].values())
        return [folder / name for name in sorted(names)]
    if (folder / TORCH_NAME).is_file():
        return [folder / TORCH_NAME]
    raise FileNotFoundError(
        f"{folder}: none of {SAFETENSORS_NAME}, {INDEX_NAME}, {TORCH_NAME} is there"
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a folder, safetensors first; nothing is ever unpickled as code.

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be read; it is named.
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                weights.update(load_file(path))
            else:
                weights.update(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: missing, {INDEX_NAME} names it") from None
        except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{path}: weights cannot be read ({reason})") from error
    return weights


def check_fit(folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Compare names and shapes.

    Raises:
        ValueError: the weights do not fit; the first few are named.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not known" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name].shape)}, the config asks for {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"{folder}: weights do not fit: {'; '.join(problems[:3])}{more}")
