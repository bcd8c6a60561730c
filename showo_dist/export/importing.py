"""A model folder, released or exported, as a checkpoint of ours: weights alone, with checksums."""

from collections.abc import Iterator
from pathlib import Path

import torch

from showo_dist.export.exporting import Track, fresh_folder
from showo_dist.models.folder import CONFIG_NAME, check_fit, local_folder
from showo_dist.models.pretrained import config_json, empty_model, read_config
from showo_dist.models.weights import Weights, adapter_record, open_weights
from showo_dist.training.checkpoint.folders import TENSORS
from showo_dist.training.checkpoint.manifest import MANIFEST, FileEntry, manifest_text
from showo_dist.training.checkpoint.parts import Part, write_part
from showo_dist.training.checkpoint.slices import WEIGHT, Piece, TensorIndex
from showo_dist.training.checkpoint.state import STATE, BatchShape, RunState, versions


def import_model(
    source: str | Path, out: Path, *, shard_bytes: int = 2 * 10**9, track: Track = iter
) -> None:
    """Write a checkpoint of step 0 from the weights of a model folder, in fp32.

    It holds no moments, no schedule and no positions: runs start from it (``experiment.init_from``), and
    none goes on from it.

    Args:
        source: model folder or hub id.
        out: must not exist, nor be called as the checkpoints of a run are.
        shard_bytes: largest file, and what is in memory at most.
        track: wraps the names while they are written, to show progress.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read or does not fit its config, or ``out``
            will not do.
    """
    if out.name.startswith("checkpoint-"):
        raise ValueError(
            f"--out {out}: a run would take it for a checkpoint to go on from; name it otherwise"
        )
    folder = local_folder(source)
    if adapter_record(folder):
        raise ValueError(f"{folder}: holds LoRA adapters; export it with --merge-lora first")
    showo = read_config(folder)
    model = empty_model(showo)
    weights = open_weights(folder)
    check_fit(folder, model.state_dict(), weights.meta)
    groups = list(_shards(weights, list(model.state_dict()), shard_bytes))
    names = iter(track(list(model.state_dict())))
    with fresh_folder(out) as aside:
        (aside / CONFIG_NAME).write_text(config_json(showo, model))
        (aside / STATE).write_text(_state().to_json())
        parts = []
        for number, group in enumerate(groups):
            pieces = [_piece(weights, next(names)) for _ in group]
            parts.append(write_part(aside, pieces, number, len(groups)))
        _describe(aside, parts)
        next(names, None)


def _shards(weights: Weights, names: list[str], limit: int) -> Iterator[list[str]]:
    """Names in order, as many together as fit."""
    group: list[str] = []
    size = 0
    for name in names:
        needed = 4 * weights.meta[name].numel()
        if group and size + needed > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    yield group


def _piece(weights: Weights, name: str) -> Piece:
    tensor = weights.read(name).to(torch.float32).contiguous()
    return Piece(WEIGHT, name, tuple(tensor.shape), 0, tensor.view(-1))


def _state() -> RunState:
    return RunState(
        step=0,
        positions={},
        schedule={},
        optimizer_steps=0,
        wandb_id=None,
        versions=versions(),
        batch=BatchShape(ranks=1, accumulation=1, flows={}),
    )


def _describe(aside: Path, parts: list[Part]) -> None:
    """Where each tensor lies, and what the files must be like."""
    index = TensorIndex.of(placed for part in parts for placed in part.placed)
    (aside / TENSORS).write_text(index.to_json())
    known = {name: entry for part in parts for name, entry in part.files.items()}
    rest = {p.name: FileEntry.of(p) for p in aside.iterdir() if p.name not in known}
    (aside / MANIFEST).write_text(manifest_text(known | rest))
