"""Everything a tokenizer run needs to go on exactly, all or nothing.

A checkpoint is a folder ``step-NNNNNNNN`` in the released format (``config.json``, ``model.safetensors``)
beside ``optimizer.safetensors`` and ``state.json``. It is written aside and becomes visible by one rename.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.weights.folder import check_fit, read_weights

OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"


def save(
    run: Path, step: int, model: MAGVITv2, optimizer: torch.optim.AdamW, keep_last: int
) -> Path:
    """Write the checkpoint of ``step`` and remove all but the newest ``keep_last`` (0: keep all)."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        save_file(_optimizer_tensors(model, optimizer), folder / OPTIMIZER_NAME)
        (folder / STATE_NAME).write_text(json.dumps({"step": step}) + "\n")

    target = run / f"step-{step:08d}"
    publish(target, write)
    for old in complete(run)[:-keep_last] if keep_last else []:
        shutil.rmtree(old)
    return target


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder aside, then give it the name ``target`` in one rename."""
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def complete(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(run.glob("step-*"))


def find(run: Path, choice: bool | str | None) -> Path | None:
    """The checkpoint that ``experiment.resume_from_checkpoint`` names, None to start anew.

    Raises:
        ValueError: the path that was named is no checkpoint.
    """
    if not choice:
        return None
    if choice in (True, "latest"):
        return next(reversed(complete(run)), None)
    folder = Path(str(choice))
    if not (folder / STATE_NAME).is_file():
        raise ValueError(
            f"experiment.resume_from_checkpoint = {choice}: no checkpoint ({STATE_NAME} is missing)"
        )
    return folder


def load(folder: Path, model: MAGVITv2, optimizer: torch.optim.AdamW) -> int:
    """Put the checkpoint into model and optimizer; returns the optimizer steps done.

    Raises:
        ValueError: it cannot be read, or is of a model of other sizes.
    """
    weights = read_weights(folder)
    check_fit(folder, model.state_dict(), weights)
    model.load_state_dict(weights)
    moments = load_file(folder / OPTIMIZER_NAME)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: _like(moments[f"{name}/{key}"], parameter)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    state: dict[str, Any] = json.loads((folder / STATE_NAME).read_text())
    return int(state["step"])


def _like(moment: Tensor, parameter: Tensor) -> Tensor:
    """The moment on the parameter's device, in its memory layout (the step count is a scalar)."""
    if moment.dim() == 0:
        return moment.to(parameter.device)
    return torch.empty_like(parameter).copy_(moment)


def _optimizer_tensors(model: MAGVITv2, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
