"""Reading a checkpoint: whole tensors, or just the runs that a rank needs."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from showo_dist.checkpoint.folders import verify
from showo_dist.checkpoint.slices import WEIGHT, Piece, Slice, StoredTensor, TensorIndex
from showo_dist.checkpoint.state import RunState

MODEL, OPTIMIZER = "model", "optimizer"  # what the files of weights and of moments begin with


def holds_weights(file: str) -> bool:
    """Whether a file of a checkpoint is needed by those who read weights alone."""
    return not file.startswith(OPTIMIZER)


class CheckpointReader:
    """Reads a checkpoint, tensor by tensor; only the pages that are asked for are read.

    Args:
        folder: ``checkpoint-STEP``.
        check: compare the files with the manifest first.
        only_weights: leave the optimizer's files alone; its moments cannot be read then.

    Raises:
        ValueError: it is not a complete checkpoint, or a file of it has changed; the file is named.
    """

    def __init__(self, folder: Path, *, check: bool = True, only_weights: bool = False) -> None:
        self.folder = folder
        if check:
            problem = verify(folder, holds_weights if only_weights else lambda name: True)
            if problem is not None:
                raise ValueError(problem)
        self.index = TensorIndex.read(folder)
        self._open: dict[str, Any] = {}

    @property
    def state(self) -> RunState:
        """Counters and positions.

        Raises:
            ValueError: another version wrote it.
        """
        return RunState.read(self.folder)

    def names(self, kind: str = WEIGHT) -> list[str]:
        """Parameters of which there is a tensor of this kind."""
        return list(self.index.tensors[kind])

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Of a whole tensor.

        Raises:
            ValueError: the checkpoint has no such tensor.
        """
        return self._stored(kind, name).shape

    def read(self, kind: str, name: str) -> Tensor:
        """One whole fp32 tensor on the CPU.

        Args:
            kind: ``weight``, ``exp_avg`` or ``exp_avg_sq``.
            name: of the parameter.

        Raises:
            ValueError: the checkpoint has no such tensor, or it cannot be read.
        """
        stored = self._stored(kind, name)
        parts = [self._flat(part) for part in stored.slices]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(stored.shape)

    def read_range(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of a flattened tensor; no other is read.

        Raises:
            ValueError: as :meth:`read`.
        """
        parts = [
            self._flat(part)[max(start - part.start, 0) : stop - part.start]
            for part in self._stored(kind, name).slices
            if part.start < stop and start < part.stop
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_piece(self, piece: Piece) -> Tensor:
        """What belongs into a piece of an engine's memory.

        Raises:
            ValueError: as :meth:`read`, or the tensor has another shape.
        """
        shape = self.shape(piece.kind, piece.name)
        if shape != piece.shape:
            raise ValueError(
                f"{self.folder}: {piece.kind} of {piece.name} is {list(shape)}, "
                f"the model has {list(piece.shape)}"
            )
        return self.read_range(piece.kind, piece.name, piece.start, piece.stop)

    def _stored(self, kind: str, name: str) -> StoredTensor:
        stored = self.index.tensors[kind].get(name)
        if stored is None:
            raise ValueError(f"{self.folder}: has no {kind} of {name}")
        return stored

    def _flat(self, part: Slice) -> Tensor:
        """A slice as a mapping of its file: pages are read when they are used."""
        path = self.folder / part.file
        try:
            if part.file not in self._open:
                self._open[part.file] = safe_open(path, framework="pt")
            return self._open[part.file].get_tensor(part.key).flatten()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None
