"""Convert a checkpoint to a model folder that other programs can load, and a model folder to a checkpoint.

The checkpoint may be of any ZeRO stage and number of ranks. Weights are read and written one shard at a time,
so that a model larger than memory can be converted (except to ``pytorch_model.bin``).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from showo_data.files import folder_aside
from showo_dist.checkpoint.folders import MANIFEST, TENSORS, FileEntry, manifest_text
from showo_dist.checkpoint.parts import Part, save_tensors, write_part
from showo_dist.checkpoint.slices import EMA, WEIGHT, Piece, TensorIndex
from showo_dist.checkpoint.state import STATE, BatchShape, RunState, versions
from showo_dist.models.weights.folder import (
    CONFIG_NAME,
    INDEX_NAME,
    SAFETENSORS_NAME,
    TORCH_NAME,
    UNWRAPPED,
    check_fit,
    inner_folder,
    local_folder,
    read_json,
)
from showo_dist.models.weights.pretrained import (
    config_json,
    described_model,
    read_config,
    read_settings,
)
from showo_dist.models.weights.sources import (
    LORA_KEY,
    Weights,
    adapter_record,
    open_weights,
)

LAYOUTS = ("showo", "safetensors")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Track = Callable[[Iterable[str]], Iterable[str]]


def export(
    source: str | Path,
    out: Path,
    *,
    layout: str = "safetensors",
    dtype: str | None = None,
    merge_lora: bool = False,
    averaged: bool = False,
    shard_bytes: int = 2 * 10**9,
    track: Track = iter,
) -> None:
    """Write a model folder.

    Args:
        source: checkpoint, model folder or hub id.
        out: folder to create; must not exist.
        layout: ``showo``: ``config.json`` and ``unwrapped_model/pytorch_model.bin``, as the published
            training code writes them; ``safetensors``: ``config.json`` and ``model.safetensors``, or shards.
        dtype: a key of :data:`DTYPES`; None keeps the dtype (fp32 in a checkpoint).
        merge_lora: merge the adapters into the weights that they were trained on.
        averaged: take the averaged weights of a checkpoint (``training.ema``).
        shard_bytes: largest safetensors shard, and most bytes of weights in memory.
        track: wraps the names while they are written, to show progress.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read or is damaged, ``out`` exists, or there are
            adapters and ``merge_lora`` is false, there are no averaged weights, or a weight is too large for
            ``dtype``.
    """
    _refuse_existing(out)
    folder = local_folder(source)
    if adapter_record(folder) and not merge_lora:
        raise ValueError(f"{folder}: holds LoRA adapters; add --merge-lora to merge and export")
    weights = open_weights(folder, kind=EMA if averaged else WEIGHT)
    expected = described_model(folder, weights.meta).state_dict()
    check_fit(folder, expected, weights.meta)
    with folder_aside(out) as aside:
        inner = aside / UNWRAPPED if layout == "showo" else aside
        inner.mkdir(exist_ok=True)
        for place in {aside, inner}:
            (place / CONFIG_NAME).write_text(_whole_config(folder))
        writer: SafetensorsWriter | TorchWriter
        writer = TorchWriter(inner) if layout == "showo" else SafetensorsWriter(inner, shard_bytes)
        for name in track(expected):
            tensor = weights.read(name)
            writer.add(name, _converted(folder, name, tensor, dtype) if dtype else tensor)
        writer.close()


def _converted(folder: Path, name: str, tensor: Tensor, dtype: str) -> Tensor:
    """Convert a tensor to a key of :data:`DTYPES`; a finite value must stay finite."""
    converted = tensor.to(DTYPES[dtype])
    if torch.any(torch.isfinite(tensor) & ~torch.isfinite(converted)):
        largest = tensor[torch.isfinite(tensor)].abs().max().item()
        others = "bf16 or fp32" if dtype == "fp16" else "fp32"
        raise ValueError(
            f"--dtype {dtype}: {name} of {folder} holds {largest:g}, more than "
            f"{torch.finfo(DTYPES[dtype]).max:g}; use --dtype {others}"
        )
    return converted


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ValueError(f"--out {out}: exists already; remove it or name another folder")


def _whole_config(folder: Path) -> str:
    """``config.json`` without the entry of the adapters."""
    values = read_json(inner_folder(folder) / CONFIG_NAME)
    values.pop(LORA_KEY, None)
    return json.dumps(values, indent=2) + "\n"


def import_model(
    source: str | Path, out: Path, *, shard_bytes: int = 2 * 10**9, track: Track = iter
) -> None:
    """Write a checkpoint of step 0, in fp32 and with checksums, from the weights of a model folder.

    It has no moments, schedule or stream positions: a run can start from it (``experiment.init_from``) but
    not resume from it.

    Args:
        source: model folder or hub id.
        out: folder to create; must not exist, nor be named like a checkpoint of a run.
        shard_bytes: largest file, and most bytes of weights in memory.
        track: wraps the names while they are written, to show progress.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read or does not fit its config, or ``out`` exists
            or is named like a checkpoint of a run.
    """
    _refuse_existing(out)
    if out.name.startswith("checkpoint-"):
        raise ValueError(
            f"--out {out}: a run would take it for a checkpoint to resume from; name it otherwise"
        )
    folder = local_folder(source)
    if adapter_record(folder):
        raise ValueError(f"{folder}: holds LoRA adapters; export it with --merge-lora first")
    showo = read_config(folder)
    weights = open_weights(folder)
    model = described_model(folder, weights.meta)
    check_fit(folder, model.state_dict(), weights.meta)
    # A part's file name holds the number of parts, so the grouping is known before the first one is written.
    groups = list(_shards(weights, list(model.state_dict()), shard_bytes))
    names = iter(track(list(model.state_dict())))
    with folder_aside(out) as aside:
        (aside / CONFIG_NAME).write_text(config_json(showo, model, read_settings(folder)))
        (aside / STATE).write_text(_state().to_json())
        parts = []
        for number, group in enumerate(groups):
            pieces = [_piece(weights, next(names)) for _ in group]
            parts.append(write_part(aside, pieces, number, len(groups)))
        _describe(aside, parts)
        next(names, None)  # lets a progress bar finish


def _shards(weights: Weights, names: list[str], limit: int) -> Iterator[list[str]]:
    """Group the names in order, each group with at most ``limit`` bytes of fp32 or a single tensor."""
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
    """Write the index of the tensors and the manifest of sizes and checksums."""
    index = TensorIndex.of(placed for part in parts for placed in part.placed)
    (aside / TENSORS).write_text(index.to_json())
    known = {name: entry for part in parts for name, entry in part.files.items()}
    rest = {p.name: FileEntry.of(p) for p in aside.iterdir() if p.name not in known}
    (aside / MANIFEST).write_text(manifest_text(known | rest))


class SafetensorsWriter:
    """Writes ``model.safetensors``, or shards with an index, each as soon as it is full.

    Args:
        folder: existing folder.
        shard_bytes: most bytes of a shard, unless a single tensor is larger.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._shard: dict[str, Tensor] = {}
        self._bytes = 0
        self._written: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor to the present shard; write the shard first if it would become too large."""
        if self._shard and self._bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._shard[name] = tensor.contiguous()
        self._bytes += tensor.nbytes

    def _flush(self) -> None:
        save_tensors(self._shard, self._aside(len(self._written)))
        self._written.append(list(self._shard))
        self._shard, self._bytes = {}, 0

    def _aside(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"

    def close(self) -> None:
        """Write the last shard, then rename all of them: their names hold the number of shards."""
        if self._shard:
            self._flush()
        count = len(self._written)
        if count == 1:
            self._aside(0).rename(self.folder / SAFETENSORS_NAME)
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self._written):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._aside(number).rename(self.folder / file)
            places |= dict.fromkeys(names, file)
        size = sum((self.folder / file).stat().st_size for file in set(places.values()))
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n")


class TorchWriter:
    """Writes ``pytorch_model.bin``; the whole model is in memory until :meth:`close`.

    Args:
        folder: existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor."""
        # Cloned, because torch.save would write the whole file that a mapped tensor is a view of.
        self._state[name] = tensor.contiguous().clone()

    def close(self) -> None:
        """Write the file."""
        torch.save(self._state, self.folder / TORCH_NAME)
