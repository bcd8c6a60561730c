"""Weights into files, one shard in memory at a time."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from showo_dist.models.folder import INDEX_NAME, SAFETENSORS_NAME, TORCH_NAME


class SafetensorsWriter:
    """``model.safetensors``, or shards with an index: tensors are written as soon as a shard is full.

    Args:
        folder: exists.
        shard_bytes: a shard holds at most so much, or a single larger tensor.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._shard: dict[str, Tensor] = {}
        self._bytes = 0
        self._written: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor."""
        if self._shard and self._bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._shard[name] = tensor.contiguous()
        self._bytes += tensor.nbytes

    def _flush(self) -> None:
        save_file(self._shard, self._aside(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._shard))
        self._shard, self._bytes = {}, 0

    def _aside(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"

    def close(self) -> None:
        """Write what is left, and give the shards their names, which tell how many there are."""
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
    """``pytorch_model.bin``, which torch writes in one go: the whole model is in memory until :meth:`close`.

    Args:
        folder: exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor, without the rest of the file that it may be a view of."""
        self._state[name] = tensor.contiguous().clone()

    def close(self) -> None:
        """Write all."""
        torch.save(self._state, self.folder / TORCH_NAME)
