"""Checkpoints of a tokenizer run; resuming from one gives the same curve as never having stopped.

A checkpoint is a folder ``step-NNNNNNNN``: ``config.json`` and ``model.safetensors`` in the released format,
``optimizer.safetensors``, ``state.json``. It is written aside and becomes visible by one rename.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from showo_data.files import folder_aside, written_aside
from showo_dist.checkpoint.parts import save_tensors
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.weights.folder import check_fit, read_weights

OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
LATEST = "latest"  # names the newest checkpoint; where a run was set back, later steps are of another branch


def save(
    run: Path,
    step: int,
    position: int,
    model: MAGVITv2,
    optimizer: torch.optim.AdamW,
    keep_last: int,
) -> Path:
    """Write the checkpoint of ``step``, and delete all of it and before but ``keep_last`` (0: keep all).

    Args:
        run: folder of the run.
        step: optimizer steps done.
        position: of the next image in the stream.
        model, optimizer: to save.
        keep_last: newest checkpoints to keep; those of later steps are from before the run was set back.
    """
    target = run / f"step-{step:08d}"
    with folder_aside(target, replace=True) as folder:
        model.save_pretrained(folder)
        save_tensors(_optimizer_tensors(model, optimizer), folder / OPTIMIZER_NAME)
        (folder / STATE_NAME).write_text(json.dumps({"step": step, "position": position}) + "\n")
    with written_aside(run / LATEST) as stream:
        stream.write(f"{target.name}\n".encode())
    before = [path for path in complete(run) if path.name <= target.name]
    for old in before[:-keep_last] if keep_last else []:
        shutil.rmtree(old)
    return target


def complete(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(run.glob("step-*"))


def find(run: Path, choice: bool | str | None) -> Path | None:
    """Find the checkpoint that ``experiment.resume_from_checkpoint`` names; None to start from scratch.

    Raises:
        ValueError: the path is not a checkpoint.
    """
    if not choice:
        return None
    if choice in (True, "latest"):
        named = run / (run / LATEST).read_text().strip() if (run / LATEST).is_file() else None
        return named if named and named.is_dir() else next(reversed(complete(run)), None)
    folder = Path(str(choice))
    if not (folder / STATE_NAME).is_file():
        raise ValueError(
            f"experiment.resume_from_checkpoint = {choice}: no checkpoint ({STATE_NAME} is missing)"
        )
    return folder


def load(folder: Path, model: MAGVITv2, optimizer: torch.optim.AdamW) -> tuple[int, int | None]:
    """Load the checkpoint into model and optimizer; return its step and position, None in older ones.

    Raises:
        ValueError: the checkpoint cannot be read, or its model has other sizes.
    """
    weights = read_weights(folder)
    check_fit(folder, model.state_dict(), weights)
    model.load_state_dict(weights)
    try:
        moments = load_file(folder / OPTIMIZER_NAME)
        state: dict[str, Any] = json.loads((folder / STATE_NAME).read_text())
        step = int(state["step"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder}: {OPTIMIZER_NAME} or {STATE_NAME} cannot be read ({error})"
        ) from None
    # Before the first finite gradient the optimizer has no state.
    for name, parameter in model.named_parameters() if moments else ():
        optimizer.state[parameter] = {
            key: _like(moments[f"{name}/{key}"], parameter)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return step, state.get("position")


def _like(moment: Tensor, parameter: Tensor) -> Tensor:
    """Copy a moment to the parameter's device and memory layout; the step count is a scalar."""
    if moment.dim() == 0:
        return moment.to(parameter.device)
    return torch.empty_like(parameter).copy_(moment)


def _optimizer_tensors(model: MAGVITv2, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
