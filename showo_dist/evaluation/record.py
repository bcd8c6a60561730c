"""What an output folder was made with, so that only the same evaluation goes on in it."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from showo_data.files import written_aside
from showo_dist.evaluation.spread import remove_leftovers
from showo_dist.runtime.ranks import Ranks

RECORD_NAME = "evaluation.json"
_TOLD = ("checkpoint",)  # kept for the reader: the same weights may lie elsewhere

Json = dict[str, Any]


def weights_digest(*models: nn.Module) -> str:
    """SHA-256 of names, types and values of all weights, in order."""
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def inputs_digest(inputs: object) -> str:
    """SHA-256 of anything that JSON holds."""
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def claim(
    folder: Path, made_with: Mapping[str, object], owned: Iterable[str], replace: bool, ranks: Ranks
) -> None:
    """Note in ``folder`` what its files are made with, or find that they were made with just that.

    Half-written files of an earlier run are removed.

    Args:
        folder: the output folder, made when absent.
        made_with: everything the files depend on.
        owned: glob patterns of the files and folders, below ``folder``, that the evaluation writes.
        replace: delete those of another evaluation instead of refusing.
        ranks: the first one acts, all of them learn of an error.

    Raises:
        ValueError: the folder holds another evaluation; the settings that differ are named.
    """
    ranks.first_alone(lambda: _claim(folder, dict(made_with), list(owned), replace))


def _claim(folder: Path, made_with: Json, owned: list[str], replace: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    difference = _difference(folder, made_with, owned)
    if difference and not replace:
        raise ValueError(f"--out {folder}: {difference}; choose another folder, or add --replace")
    if difference:
        _remove([path for pattern in owned for path in folder.glob(pattern)])
    remove_leftovers(folder)
    if difference or not (folder / RECORD_NAME).is_file():
        with written_aside(folder / RECORD_NAME) as stream:
            stream.write(json.dumps(made_with, indent=2).encode() + b"\n")


def _difference(folder: Path, made_with: Json, owned: list[str]) -> str:
    """How what lies in the folder differs from what is to be made; empty when it does not."""
    path = folder / RECORD_NAME
    if not path.is_file():
        found = next((path for pattern in owned for path in folder.glob(pattern)), None)
        return f"holds {found.name} and no {RECORD_NAME} that says what made it" if found else ""
    try:
        before = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        return f"its {RECORD_NAME} cannot be read ({error})"
    keys = [key for key in {**before, **made_with} if key not in _TOLD]
    unlike = [key for key in keys if before.get(key) != made_with.get(key)]
    parts = [f"{key} {_shown(before.get(key))}, not {_shown(made_with.get(key))}" for key in unlike]
    return f"holds an evaluation with {'; '.join(parts)}" if parts else ""


def _shown(value: object) -> str:
    if isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2:
        return f"{value[:8]}…"
    return repr(value)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
